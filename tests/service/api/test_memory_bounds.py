"""Memory for bodies and for images being decoded, shared by all requests of a front end."""

from __future__ import annotations

import asyncio
import io
import threading
import time

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.http.body_limits import BodyLimits
from service.http.problems import Problem, TooManyRequests
from service.imaging.decoding import decode_image
from service.imaging.errors import ImageTooLarge
from service.imaging.limits import MediaLimits
from service.operations.image_threads import ImageThreads
from service.telemetry.timings import RequestTimings
from tests.service.api.test_overload import PNG, HeldDevice, picture
from tests.service.application import app_of, service
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


async def test_bodies_fill_the_memory_until_their_requests_are_answered() -> None:
    app = BodyLimits(echo_length, max_bytes=1000, max_json_bytes=1000, max_bytes_in_flight=100)
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
            with pytest.raises(Problem) as raised:
                await refused
        assert raised.value.kind is TooManyRequests
        assert raised.value.headers == {"Retry-After": "1", "Connection": "close"}
    again = AsgiClient(path="/", headers={}, body=b"x" * 100)
    async with request(app, again) as answered:
        await answered
        assert (await again.start())["status"] == 200


async def test_a_too_long_content_length_is_refused_and_a_declared_one_reserves_nothing() -> None:
    app = BodyLimits(echo_length, max_bytes=1000, max_json_bytes=1000, max_bytes_in_flight=100)
    promise = AsgiClient(path="/", headers={"Content-Length": "101"}, body=b"")
    promise.scope["state"] |= {"timings": RequestTimings(), "deadline": time.monotonic()}
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


async def test_a_request_whose_image_finds_no_memory_waits_for_it_and_then_succeeds() -> None:
    device = HeldDevice()
    device.release.set()
    async with service(device, decode_threads=2) as client:
        threads: ImageThreads = app_of(client).state.api.operations.threads
        is_held, release = threading.Event(), threading.Event()

        def hold() -> None:
            threads.reserve(2**40)
            is_held.set()
            release.wait()

        holding = asyncio.ensure_future(threads.run(hold, deadline=time.monotonic() + 60))
        await asyncio.to_thread(is_held.wait)
        asked = asyncio.ensure_future(client.post("/v1/encode", content=picture(7), headers=PNG))
        async with asyncio.timeout(60):
            while not threads._set_aside:  # noqa: ASYNC110  a thread has read the image's header
                await asyncio.sleep(0)
        assert not asked.done()
        assert device.batches == []
        release.set()
        await holding
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
