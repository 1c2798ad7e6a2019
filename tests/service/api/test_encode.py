"""POST /v1/encode: its schema, keys, methods and metrics."""

from __future__ import annotations

import pytest

from service.api.schemas.tokens import EncodeResponse
from tests.service.api.test_overload import PNG, HeldDevice, picture
from tests.service.application import app_of, service

pytestmark = pytest.mark.anyio


@pytest.fixture
def device() -> HeldDevice:
    device = HeldDevice()
    device.release.set()
    return device


async def test_cached_and_computed_answers_match_the_schema(device: HeldDevice) -> None:
    async with service(device) as client:
        for is_known in (False, True):
            answer = await client.post("/v1/encode", content=picture(7), headers=PNG)
            document = EncodeResponse.model_validate_json(answer.content, strict=True)
            assert document.model_dump() == answer.json()
            assert answer.text == document.model_dump_json()
            assert document.data[0].cached is is_known


async def test_a_request_without_a_key_is_refused_as_on_every_route(device: HeldDevice) -> None:
    async with service(device, api_keys="s3cret") as client:
        refused = await client.post("/v1/encode", content=picture(7), headers=PNG)
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        for key in ({"Authorization": "Bearer s3cret"}, {"X-API-Key": "s3cret"}):
            assert (await client.post("/v1/encode", content=picture(7), headers={**PNG, **key})).status_code == 200


async def test_a_wrong_method_is_answered_with_the_allowed_ones(device: HeldDevice) -> None:
    async with service(device) as client:
        refused = await client.get("/v1/encode")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert refused.json()["type"] == "urn:titok:problem:method-not-allowed"


async def test_its_requests_are_counted_by_path_and_documented_once(device: HeldDevice) -> None:
    async with service(device) as client:
        await client.post("/v1/encode", content=picture(7), headers=PNG)
        labels = {"route": "/v1/encode", "method": "POST", "code": "200"}
        registry = app_of(client).state.api.metrics.registry
        assert registry.get_sample_value("titok_http_requests_total", labels) == 1
        document = (await client.get("/openapi.json")).json()
        assert list(document["paths"]["/v1/encode"]) == ["post"]
        assert document["paths"]["/v1/encode"]["post"]["security"]
