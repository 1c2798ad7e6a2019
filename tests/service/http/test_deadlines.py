"""The deadline of a request: from the setting and from the header, and for all of the request."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.http.deadlines import Deadlines, request_seconds
from service.http.problems import InvalidRequest, Problem
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 30.0), ("1500", 1.5), ("1", 0.001), ("9999999999", 30.0), ("0030000", 30.0)]
)
def test_the_header_shortens_the_setting_and_never_extends_it(header: str | None, seconds: float) -> None:
    assert request_seconds(Headers({} if header is None else {"x-request-timeout-ms": header}), 30.0) == seconds


@pytest.mark.parametrize("header", ["0", "-1", "1.5", "", "soon", "10000000000", "\xb2"])
def test_what_is_not_a_whole_number_of_milliseconds_is_refused(header: str) -> None:
    with pytest.raises(Problem) as refused:
        request_seconds(Headers({"x-request-timeout-ms": header}), 30.0)
    assert refused.value.kind is InvalidRequest
    assert refused.value.errors[0].pointer == "header/X-Request-Timeout-Ms"


async def test_a_body_that_does_not_arrive_in_time_is_answered_504_and_its_work_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["state"]["deadline"] <= time.monotonic() + 0.01
        await receive()
        try:
            await receive()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    client = AsgiClient(path="/", headers={"X-Request-Timeout-Ms": "10"}, body=b"")
    async with request(Deadlines(read, max_seconds=30.0), client) as answered:
        await answered
        start = await client.start()
        assert start["status"] == 504
        assert (b"connection", b"close") in start["headers"]
        assert cancelled.is_set()


async def test_a_response_that_has_begun_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)

    client = AsgiClient(path="/", headers={"X-Request-Timeout-Ms": "30000"}, body=b"slow reader")
    client.stop_reading()
    async with request(Deadlines(answer, max_seconds=30.0), client) as answered:
        await client.until_stuck()
        loop = asyncio.get_running_loop()
        later = loop.time() + 60  # than the deadline and its grace
        monkeypatch.setattr(loop, "time", lambda: later)
        for _ in range(3):  # timers run, then what they cancel
            await asyncio.sleep(0)
        client.read_on()
        await answered
        assert (await client.start())["status"] == 200
        assert await client.chunk() == b"slow reader"


async def test_an_invalid_header_is_refused_before_the_body_is_read() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    client = AsgiClient(path="/", headers={"X-Request-Timeout-Ms": "soon"}, body=b"")
    async with request(Deadlines(never, max_seconds=30.0), client) as answered:
        await answered
        assert (await client.start())["status"] == 422
