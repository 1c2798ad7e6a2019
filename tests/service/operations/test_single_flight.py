"""Identical images in flight are computed once, and every request still ends as it would have alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.api.test_overload import PNG, HeldDevice, at_device, picture, queued, service

pytestmark = pytest.mark.anyio


@pytest.fixture
def device() -> Iterator[HeldDevice]:
    device = HeldDevice()
    yield device
    device.release.set()


def post(client: httpx.AsyncClient, body: bytes, **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/v1/encode", content=body, headers={**PNG, **headers}))


def shared(client: httpx.AsyncClient) -> int:
    state: Any = client._transport.app.state.api  # type: ignore[attr-defined]
    assert len(state.operations.tokenizer._in_progress) == 0
    return int(state.metrics.registry.get_sample_value("titok_cache_requests_total", {"result": "shared"}) or 0)


async def test_of_a_thousand_requests_for_one_new_image_the_device_sees_one(device: HeldDevice) -> None:
    async with service(device) as client:
        burst = [post(client, picture(7)) for _ in range(1000)]
        await queued(client, 1)
        device.release.set()
        for answer in await asyncio.gather(*burst):
            assert answer.json()["data"][0]["tokens"] == [7] * 4
        assert device.batches == [1]
        assert shared(client) > 0


async def test_a_duplicate_image_in_a_request_is_computed_once(device: HeldDevice) -> None:
    device.release.set()
    async with service(device) as client:
        files = [("image", (f"{index}.png", picture(value))) for index, value in enumerate((7, 8, 7))]
        answer = await client.post("/v1/encode", files=files)
        assert [image["tokens"][0] for image in answer.json()["data"]] == [7, 8, 7]
        assert sum(device.batches) == 2


async def test_when_the_first_client_leaves_or_is_late_another_takes_over(device: HeldDevice) -> None:
    async with service(device) as client:
        blocker = post(client, picture(1))
        await at_device(client)
        late = post(client, picture(7), **{"X-Request-Timeout-Ms": "60"})
        others = [post(client, picture(7)) for _ in range(5)]
        assert (await late).status_code == 504
        await queued(client, 2)  # one of the others has taken the place
        device.release.set()
        answers = await asyncio.gather(*others)
        assert {answer.json()["data"][0]["tokens"][0] for answer in answers} == {7}
        assert (await blocker).status_code == 200
        assert sum(device.batches) == 2
        assert shared(client) == 4


async def test_an_image_that_breaks_the_device_is_not_tried_for_each_who_waits(device: HeldDevice) -> None:
    async with service(device) as client:
        burst = [post(client, picture(0)) for _ in range(20)]
        await queued(client, 1)
        device.release.set()
        assert {answer.status_code for answer in await asyncio.gather(*burst)} == {500}
        assert len(device.batches) <= 2  # the engine's own second try
        shared(client)


async def test_what_is_no_image_is_told_to_each_with_the_place_in_its_own_request(device: HeldDevice) -> None:
    device.release.set()
    async with service(device) as client:
        broken = picture(7)[:40]
        alone = [post(client, broken) for _ in range(5)]
        files = [("image", ("good.png", picture(8))), ("image", ("broken.png", broken))]
        form = asyncio.create_task(client.post("/v1/encode", files=files))
        assert {answer.status_code for answer in await asyncio.gather(*alone)} == {400}
        assert [place["pointer"] for place in (await form).json()["errors"]] == ["body/1"]
        shared(client)
