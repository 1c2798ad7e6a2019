"""The direct route of encode: for clients, metrics and documents it is what FastAPI's own would be."""

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


async def test_an_answer_is_what_its_schema_says_whether_it_was_known_or_not(device: HeldDevice) -> None:
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


async def test_another_method_is_told_which_one_there_is(device: HeldDevice) -> None:
    async with service(device) as client:
        refused = await client.get("/v1/encode")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert refused.json()["type"] == "urn:titok:problem:method-not-allowed"


async def test_it_is_counted_by_its_path_and_stands_in_the_document_once(device: HeldDevice) -> None:
    async with service(device) as client:
        await client.post("/v1/encode", content=picture(7), headers=PNG)
        labels = {"route": "/v1/encode", "method": "POST", "code": "200"}
        registry = app_of(client).state.api.metrics.registry
        assert registry.get_sample_value("titok_http_requests_total", labels) == 1
        document = (await client.get("/openapi.json")).json()
        assert list(document["paths"]["/v1/encode"]) == ["post"]
        assert document["paths"]["/v1/encode"]["post"]["security"]
