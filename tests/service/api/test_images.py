"""Images by their address; the device is a fake that can be held, so that an answer shows that it was not asked."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.service.api.test_overload import HeldDevice
from tests.service.application import app_of, service

pytestmark = pytest.mark.anyio

ADDRESS = "/v1/images/held@1/BwcHBw"


async def test_an_image_that_was_drawn_before_needs_no_device() -> None:
    device = HeldDevice()
    async with service(device) as client:
        device.release.set()
        first = await client.get(f"{ADDRESS}.png")
        assert first.status_code == 200
        device.release.clear()
        again = await client.get(f"{ADDRESS}.png")
        assert (again.content, again.headers["etag"]) == (first.content, first.headers["etag"])
        metrics = app_of(client).state.api.metrics.registry
        for result in ("hit", "miss"):
            assert metrics.get_sample_value("titok_picture_requests_total", {"result": result}) == 1


async def test_a_known_etag_is_answered_with_304_without_the_device() -> None:
    async with service(HeldDevice()) as client:
        drawing = HeldDevice()
        drawing.release.set()
        async with service(drawing) as other:
            tag = (await other.get(f"{ADDRESS}.png")).headers["etag"]
        answer = await client.get(f"{ADDRESS}.png", headers={"If-None-Match": f'"x", W/{tag}'})
        assert answer.status_code == 304


async def test_each_size_and_quality_is_its_own_image_and_the_models_size_is_the_default() -> None:
    device = HeldDevice()
    device.release.set()
    async with service(device) as client:
        answers = {
            query: await client.get(f"{ADDRESS}.jpg?{query}")
            for query in ("", "size=32", "size=64", "size=64&quality=20", "quality=20&size=64")
        }
        assert [Image.open(io.BytesIO(answer.content)).size[0] for answer in answers.values()] == [8, 32, 64, 64, 64]
        assert len({answer.headers["etag"] for answer in answers.values()}) == 4
        for answer in answers.values():
            same = await client.get(answer.headers["content-location"])
            assert same.content == answer.content


async def test_an_unknown_revision_is_answered_with_the_served_one() -> None:
    async with service(HeldDevice()) as client:
        answer = await client.get("/v1/images/held@0/BwcHBw.png")
        assert answer.status_code == 410
        assert answer.json()["type"] == "urn:titok:problem:gone"
        assert answer.json()["served"] == "held@1"
