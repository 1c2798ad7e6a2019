"""Memory for bodies and for images being decoded, shared by all requests of a front end."""

from __future__ import annotations

import asyncio
import io
import threading

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.http.body_limits import BodyLimits
from service.http.problems import TooManyRequests
from service.imaging.decoding import decode_image
from service.imaging.decoding_memory import DecodingMemory
from service.imaging.errors import ImageTooLarge
from service.imaging.limits import MediaLimits
from tests.service.api.test_overload import PNG, HeldDevice, picture
from tests.service.application import app_of, service
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def test_bodies_fill_the_memory_until_their_requests_are_answered() -> None:
    app = BodyLimits(echo_length, max_bytes=1000, max_bytes_in_flight=100)
    holder = AsgiClient(path="/", headers={}, body=b"x" * 60)
    holder.stop_reading()
    async with request(app, holder):
        await holder.until_stuck()
        small = AsgiClient(path="/", headers={}, body=b"x" * 40)
        async with request(app, small) as answered:
            await answered
            assert (await small.start())["status"] == 200
        large = AsgiClient(path="/", headers={}, body=b"x" * 41)
        async with request(app, large) as refused:
            with pytest.raises(TooManyRequests) as raised:
                await refused
        assert raised.value.headers == {"Retry-After": "1", "Connection": "close"}
    again = AsgiClient(path="/", headers={}, body=b"x" * 100)
    async with request(app, again) as answered:
        await answered
        assert (await again.start())["status"] == 200


async def test_a_body_that_will_not_fit_is_refused_by_its_header_and_a_promise_takes_no_room() -> None:
    app = BodyLimits(echo_length, max_bytes=1000, max_bytes_in_flight=100)
    promise = AsgiClient(path="/", headers={"Content-Length": "101"}, body=b"")
    async with request(app, promise) as refused:
        await refused
        assert (await promise.start())["status"] == 429
    patient = AsgiClient(path="/", headers={"Content-Length": "100"}, body=b"")
    patient.stop_reading()
    async with request(app, patient):
        await patient.until_stuck()
        other = AsgiClient(path="/", headers={"Content-Length": "100"}, body=b"x" * 100)
        async with request(app, other) as answered:
            await answered
            assert (await other.start())["status"] == 200


def test_images_wait_for_each_others_memory_and_one_that_needs_all_of_it_is_decoded_alone() -> None:
    memory = DecodingMemory(100)
    most, now, lock = 0, 0, threading.Lock()

    def decode(cost: int) -> None:
        nonlocal most, now
        with memory.lease() as reserve:
            reserve(cost)
            with lock:
                now += min(cost, 100)
                most = max(most, now)
            with lock:
                now -= min(cost, 100)

    threads = [threading.Thread(target=decode, args=(cost,)) for cost in (30, 1000, 60, 50, 100, 1, 99) * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < most <= 100


async def test_a_request_whose_image_finds_no_memory_waits_for_it_and_then_succeeds() -> None:
    device = HeldDevice()
    device.release.set()
    async with service(device) as client:
        memory: DecodingMemory = app_of(client).state.api.operations.threads.memory
        with memory.lease() as reserve:
            reserve(2**40)
            asked = asyncio.ensure_future(client.post("/v1/encode", content=picture(7), headers=PNG))
            async with asyncio.timeout(60):
                while not memory._order.locked():  # noqa: ASYNC110  a thread waits
                    await asyncio.sleep(0)
            assert not asked.done()
            assert device.batches == []
        assert (await asked).status_code == 200


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_memory_is_reserved_once_before_pixels_are_decoded(image_format: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, image_format)
    reserved: list[int] = []
    decode_image(buffer.getvalue(), limits=MediaLimits(), reserve=reserved.append)
    assert len(reserved) == 1
    assert 4 * 5000 <= reserved[0] <= 24 * 5000


def test_of_an_image_beyond_the_limit_nothing_is_reserved() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, "PNG")
    with pytest.raises(ImageTooLarge):
        decode_image(buffer.getvalue(), limits=MediaLimits(max_pixels=4999), reserve=lambda _: pytest.fail("reserved"))
