"""What browsers are told: of pages, and of pages of other origins."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx
import pytest
from pydantic import ValidationError

from service.api.admin import create_admin_app
from service.settings import Settings
from tests.service.api.test_overload import open_service
from tests.service.application import app_of

pytestmark = pytest.mark.anyio

ELSEWHERE = "https://app.example.com"
PREFLIGHT = {"Origin": ELSEWHERE, "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize("path", ["/", "/playground/playground.js", "/docs"])
async def test_pages_say_what_they_may_load_and_who_may_frame_them(path: str) -> None:
    async with open_service() as client:
        page = await client.get(path)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "camera=()" in page.headers["permissions-policy"]


async def test_the_reference_may_run_its_own_script_and_the_files_it_loads_are_here() -> None:
    async with open_service() as client:
        page = await client.get("/docs")
        [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'self' 'sha256-{digest}';" in page.headers["content-security-policy"]
        for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert address.startswith("/static-offline-docs/")
            assert (await client.get(address)).status_code == 200


async def test_head_is_answered_as_get_without_a_body_and_counted_as_head() -> None:
    paths = ["/livez", "/readyz", "/healthz", "/v1/models", "/v1/models/held", "/docs", "/openapi.json", "/"]
    async with open_service() as client:
        for path in paths:
            head, get = await client.head(path), await client.get(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert head.headers["content-type"] == get.headers["content-type"]
        counted = {"route": "/livez", "method": "HEAD", "code": "200"}
        registry = app_of(client).state.api.metrics.registry
        assert registry.get_sample_value("titok_http_requests_total", counted) == 1
        assert (await client.head("/v1/encode")).status_code == 405


async def test_the_admin_application_answers_head() -> None:
    async def health() -> dict[str, str]:
        return {"status": "ready", "reason": ""}

    async def exposition() -> bytes:
        return b"metrics"

    transport = httpx.ASGITransport(create_admin_app(health, exposition))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/livez", "/readyz", "/healthz", "/metrics"):
            assert (await client.head(path)).status_code == 200


async def test_urls_of_responses_begin_with_the_prefix_that_a_proxy_has_removed() -> None:
    async with open_service() as served:
        transport = httpx.ASGITransport(app_of(served), root_path="/titok")
        async with httpx.AsyncClient(transport=transport, base_url="http://test/titok") as client:
            page = (await client.get("/docs")).text
            addresses = re.findall(r'(?:src|href|url)(?:="|: \')([^"\']+)["\']', page)
            assert "/titok/openapi.json" in addresses
            for address in addresses:
                assert address.startswith("/titok/")
                assert (await client.get(f"http://test{address}")).status_code == 200
            assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/titok"}]
            index = (await client.get("/", headers={"Accept": "application/json"})).json()
            assert index["models"] == "/titok/v1/models"
            image = await client.get("/v1/images/held/BwcHBw.png")
            assert (await client.get(f"http://test{image.headers['content-location']}")).status_code == 200
        counted = {"route": "/v1/images/{tokenizer}/{code}.{extension}", "method": "GET", "code": "200"}
        assert app_of(served).state.api.metrics.registry.get_sample_value("titok_http_requests_total", counted) == 2


async def test_repeated_header_lines_count_as_one() -> None:
    async with open_service() as client:
        lines = [("Accept", "text/html;q=0.1"), ("Accept", "application/json")]
        assert (await client.get("/", headers=lines)).headers["content-type"] == "application/json"
        etag = (await client.get("/playground/page.js")).headers["etag"]
        lines = [("If-None-Match", '"other"'), ("If-None-Match", etag)]
        assert (await client.get("/playground/page.js", headers=lines)).status_code == 304
        for name in ("Content-Type", "Authorization", "X-API-Key", "X-Request-Timeout-Ms", "X-Request-ID"):
            lines = [("Content-Type", "image/png"), (name, "image/png"), (name, "two")]
            assert (await client.post("/v1/encode", headers=lines, content=b"x")).status_code in (400, 415, 422)


@pytest.mark.parametrize("path", ["/v1/encode/", "/v1/models/", "/docs/", "/livez/"])
async def test_a_trailing_slash_is_404_and_no_redirect_to_an_address_that_the_client_named(path: str) -> None:
    async with open_service() as client:
        answer = await client.post(path, headers={"Host": "evil.example"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "location" not in answer.headers


async def test_pages_of_other_origins_may_not_call_the_api_unless_they_are_named() -> None:
    async with open_service() as client:
        assert "access-control-allow-origin" not in (await client.options("/v1/encode", headers=PREFLIGHT)).headers
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=PREFLIGHT)).headers
    async with open_service(cors_origins=f"{ELSEWHERE}, http://localhost:3000", api_keys="one") as client:
        asked = PREFLIGHT | {"Access-Control-Request-Headers": "authorization, content-type"}
        allowed = await client.options("/v1/encode", headers=asked)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ELSEWHERE)
        assert allowed.headers["access-control-allow-headers"] == "authorization, content-type"
        assert "access-control-allow-credentials" not in allowed.headers
        # A refusal can be read too, with what it says of time and key.
        refused = await client.get("/v1/models", headers=PREFLIGHT)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ELSEWHERE)
        assert refused.headers["access-control-expose-headers"] == "*"
        other = await client.get("/v1/models", headers=PREFLIGHT | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/path", "ftp://x", "https://"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=origin)  # type: ignore[arg-type]
