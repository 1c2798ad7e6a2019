"""Authorization in the whole application, on a fake device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service.api.access.authorization import KeyedRoute, _network_of, check_routes
from service.api.access.key_store import ReloadingKeyStore
from service.api.access.keys import ApiKey
from service.api.access.roles import OPEN_PATHS, REQUIRED_ROLES
from tests.service.api.test_lookup import digest
from tests.service.api.test_overload import PNG, open_service, picture
from tests.service.application import app_of

pytestmark = pytest.mark.anyio

ROLES = ("encode", "decode", "generate")
KEYS = {role: f"key for {role}" for role in (*ROLES, "admin")}
CODE = "BwcHBw"
# One call of every route that asks for a key, and what it asks for.
CALLS: dict[tuple[str, str], set[str]] = {
    ("POST", "/v1/encode"): {"encode"},
    ("POST", "/v1/codes:lookup"): {"encode"},
    ("GET", f"/v1/codes/{'0' * 64}"): {"encode"},
    ("POST", "/v1/decode"): {"decode"},
    ("GET", f"/v1/images/held/{CODE}.png"): {"decode"},
    ("HEAD", f"/v1/images/held/{CODE}.png"): {"decode"},
    ("POST", "/v1/mix"): {"decode"},
    ("POST", "/v1/reconstruct"): {"encode", "decode"},
    ("POST", "/v1/generate"): {"generate"},
    ("POST", "/v1/images/generations"): {"generate"},
    ("GET", "/v1/models"): set(),
    ("GET", "/v1/models/held"): set(),
    ("GET", "/v1/models/held/classes"): set(),
}


def entries(keys: Iterable[ApiKey]) -> str:
    return ",".join(key.entry() for key in keys)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def table(key: str, **options: Any) -> str:
    return ApiKey.plain(key, name="ann", **{"roles": ("encode",), **options}).table()


@asynccontextmanager
async def keyed(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A service with one key per role."""
    keys = entries(ApiKey.plain(key, name=role, roles=[role]) for role, key in KEYS.items())  # type: ignore[list-item]
    async with open_service(api_keys=keys, **settings) as client:
        yield client


async def test_every_route_has_required_roles_and_is_called_below(tmp_path: Path) -> None:
    async with open_service(pages_dir=tmp_path) as client:
        routes: list[BaseRoute] = app_of(client).routes
        check_routes(routes)
        keyed = [route for route in routes if isinstance(route, KeyedRoute)]
        assert {route.path for route in keyed} == REQUIRED_ROLES.keys()
        assert {getattr(route, "path", None) for route in routes} == REQUIRED_ROLES.keys() | OPEN_PATHS
        called = {_route_of(keyed, "GET" if method == "HEAD" else method, path) for method, path in CALLS}
    assert called == set(REQUIRED_ROLES)


def _route_of(routes: Iterable[KeyedRoute], method: str, path: str) -> str | None:
    for route in routes:
        match, _ = route.matches({"type": "http", "method": method, "path": path, "root_path": ""})
        if match.value == 2:
            return route.path
    return None


async def test_a_route_without_required_roles_is_refused() -> None:
    async def new() -> None:
        """Not named anywhere."""

    with pytest.raises(KeyError, match="/v1/new"):
        KeyedRoute("/v1/new", new)
    for path in ("/v1/new", "/v1/encode"):
        with pytest.raises(LookupError, match=path):
            check_routes([APIRoute(path, new)])


async def test_a_missing_or_unknown_key_is_401_before_any_other_check() -> None:
    async with keyed() as client:
        for method, path in CALLS:
            for headers, challenge in (
                ({}, "Bearer"),
                (bearer("unknown"), 'Bearer error="invalid_token"'),
                ({"X-API-Key": "unknown"}, 'Bearer error="invalid_token"'),
            ):
                refused = await client.request(method, path, headers=headers, content=b"")
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, challenge), path
                assert refused.headers["content-type"] == "application/problem+json"


async def test_a_key_without_the_role_is_403_and_names_the_role() -> None:
    async with keyed() as client:
        for (method, path), required in CALLS.items():
            for role, key in KEYS.items():
                answer = await client.request(method, path, headers=bearer(key), content=b"")
                is_allowed = role == "admin" or required <= {role}
                assert (answer.status_code != 403) is is_allowed, (path, role)
                assert answer.status_code != 401
                if not is_allowed:
                    scope = " ".join(sorted(required))
                    assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'
                    if method != "HEAD":
                        assert answer.json()["type"] == "urn:titok:problem:forbidden"
                        assert key not in answer.text


async def test_without_configured_keys_every_caller_is_authorized() -> None:
    async with open_service() as client:
        for headers in ({}, bearer("whatever")):
            answer = await client.post("/v1/encode", content=picture(7), headers={**PNG, **headers})
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers


async def test_open_paths_need_no_key() -> None:
    async with keyed() as client:
        for path in OPEN_PATHS - {"/playground/{path:path}", "/pages/{path:path}", "/static-offline-docs"}:
            assert (await client.get(path)).status_code == 200, path


async def test_metrics_are_not_on_the_public_port() -> None:
    async with keyed() as client:
        for path in ("/metrics", "/metrics/", "/admin", "/admin/metrics"):
            assert (await client.get(path, headers=bearer(KEYS["admin"]))).status_code == 404


async def test_scoped_cache_entries_survive_a_reload_of_the_key_file(tmp_path: Path) -> None:
    path, image = tmp_path / "keys.toml", picture(7)
    path.write_text(table("one"))
    async with open_service(api_keys_file=path, cache_scope="key") as client:
        await client.post("/v1/encode", content=image, headers={**PNG, **bearer("one")})
        path.write_text(table("one") + table("two").replace('"ann"', '"bob"'))
        app_of(client).state.access_control.keys._next_read = 0.0
        statuses = [
            (await client.get(f"/v1/codes/{digest(image)}", headers=bearer(key))).status_code for key in ("one", "two")
        ]
        assert statuses == [200, 404]


async def test_a_service_that_cannot_read_its_keys_is_not_ready_and_answers_503(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(table("one"))
    async with open_service(api_keys_file=path) as client:
        assert (await client.get("/healthz")).json()["api_keys"] == "ok"
        path.unlink()
        state = app_of(client).state
        state.api.keys = state.access_control.keys = ReloadingKeyStore(state.api.settings)  # as after a restart
        answer = await client.get("/v1/models", headers=bearer("one"))
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        readiness, health = await client.get("/readyz"), await client.get("/healthz")
        assert (readiness.status_code, health.status_code) == (503, 503)
        assert "API keys cannot be read" in readiness.json()["reason"]
        assert health.json()["api_keys"] == "unreadable"


async def test_rate_limits_count_images_and_set_headers() -> None:
    key = ApiKey.plain("one", name="ann", roles=["encode", "decode"], rate="5/hour")
    async with open_service(api_keys=key.entry()) as client:
        decode = {"url": "/v1/decode", "headers": bearer("one")}
        three = await client.post(**decode, json={"codes": [CODE] * 3})
        assert three.status_code == 200
        assert three.headers["ratelimit-policy"] == '"images";q=5;w=3600;qu="images"'
        assert three.headers["ratelimit"].startswith('"images";r=2;t=')
        too_many = await client.post(**decode, json={"codes": [CODE] * 3})
        assert too_many.status_code == 429
        assert too_many.json()["type"] == "urn:titok:problem:too-many-requests"
        assert int(too_many.headers["retry-after"]) >= 1
        # The refused request has spent nothing, and one that never fits neither.
        assert too_many.headers["ratelimit"].startswith('"images";r=2;t=')
        assert (await client.post(**decode, json={"codes": [CODE] * 7})).status_code == 413
        two = await client.post(**decode, json={"codes": [CODE] * 2})
        assert (two.status_code, two.headers["ratelimit"].partition(";t=")[0]) == (200, '"images";r=0')
        assert (
            await client.post("/v1/encode", content=picture(7), headers={**PNG, **bearer("one")})
        ).status_code == 429
        models = await client.get("/v1/models", headers=bearer("one"))
        assert (models.status_code, "ratelimit" in models.headers) == (200, False)


async def test_a_batch_that_obeys_retry_after_is_let_in() -> None:
    key = ApiKey.plain("one", name="ann", roles=["decode"], rate="20/second")
    async with open_service(api_keys=key.entry()) as client:
        batch = {"url": "/v1/decode", "headers": bearer("one"), "json": {"codes": [CODE] * 5}}
        while (answer := await client.post(**batch)).status_code == 200:
            pass
        assert answer.status_code == 429
        await asyncio.sleep(int(answer.headers["retry-after"]))
        assert (await client.post(**batch)).status_code == 200


async def test_a_refusal_before_the_body_waits_for_as_many_images_as_the_last_request_had() -> None:
    key = ApiKey.plain("one", name="ann", roles=["decode"], rate="20/hour")
    async with open_service(api_keys=key.entry()) as client:
        for count in (15, 5):
            assert (await client.post("/v1/decode", headers=bearer("one"), json={"codes": [CODE] * count})).is_success
        refused = await client.post("/v1/decode", headers=bearer("one"), json={"codes": [CODE] * 5})
        # One image fits after an hour, five after another 20 % of it.
        assert 1.1 * 3600 < int(refused.headers["retry-after"]) < 1.3 * 3600


async def test_a_request_that_the_service_refuses_counts_no_images() -> None:
    key = ApiKey.plain("one", name="ann", roles=["decode"], rate="5/hour")
    async with open_service(api_keys=key.entry()) as client:
        decode = {"url": "/v1/decode", "headers": bearer("one")}
        engine = app_of(client).state.api.operations.engine
        await engine.stop(0.0)
        refused = await client.post(**decode, json={"codes": [CODE] * 3})
        assert (refused.status_code, refused.headers["ratelimit"][:15]) == (503, '"images";r=5;t=')
        invalid = await client.post(**decode, json={"codes": ["?"]})
        assert (invalid.status_code, invalid.headers["ratelimit"][:15]) == (422, '"images";r=4;t=')


async def test_more_images_than_the_rate_ever_allows_are_413() -> None:
    key = ApiKey.plain("one", name="ann", roles=["decode"], rate="5/hour")
    async with open_service(api_keys=key.entry()) as client:
        answer = await client.post("/v1/decode", json={"codes": [CODE] * 7}, headers=bearer("one"))
        assert answer.status_code == 413


async def test_the_default_rate_applies_to_each_key_separately() -> None:
    async with open_service(api_keys="one,two", rate_limit="1/hour") as client:
        for key, status in (("one", 200), ("one", 429), ("two", 200)):
            answer = await client.post("/v1/encode", content=picture(7), headers={**PNG, "X-API-Key": key})
            assert answer.status_code == status


async def test_anonymous_callers_are_limited_by_address() -> None:
    async with open_service(anonymous_rate_limit="1/hour") as client:
        statuses = [(await client.post("/v1/encode", content=picture(7), headers=PNG)).status_code for _ in range(2)]
        assert statuses == [200, 429]


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv4_client_has_a_rate_of_its_own_on_an_ipv6_socket_too(client: str, network: str) -> None:
    assert _network_of(Request({"type": "http", "client": (client, 1)})) == network


@pytest.mark.parametrize("revision", ["", "@1"])
async def test_an_image_that_needs_a_key_is_not_for_shared_caches(revision: str) -> None:
    path = f"/v1/images/held{revision}/{CODE}.png"
    async with keyed() as client:
        image = await client.get(path, headers=bearer(KEYS["decode"]))
        assert image.headers["cache-control"].startswith("private, max-age=")
        again = {**bearer(KEYS["decode"]), "If-None-Match": image.headers["etag"]}
        unmodified = await client.get(path, headers=again)
        assert (unmodified.status_code, unmodified.headers["cache-control"][:8]) == (304, "private,")
    async with open_service() as client:
        assert (await client.get(path)).headers["cache-control"].startswith("public, max-age=")


async def test_responses_never_contain_the_key() -> None:
    async with keyed() as client:
        answer = await client.post("/v1/encode", content=b"no image", headers={**PNG, **bearer(KEYS["encode"])})
        assert answer.status_code == 400
        assert KEYS["encode"] not in answer.text + str(answer.headers)
