"""Events on the wire, whatever either side does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from service.http import sse as event_stream
from service.http.problems import DeadlineExceeded, InternalError, Problem, TooManyRequests, problem_response
from service.http.sse import EventStream, event
from tests.service.asgi_client import AsgiClient, request

pytestmark = pytest.mark.anyio

KEEP_ALIVE = b": keep-alive\n\n"


class Source:
    """Events that a test makes: an exception among them is raised, None ends them."""

    def __init__(self, *events: bytes | Exception | None) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.made = 0
        self.closed = False
        for item in events:
            self.queue.put_nowait(item)

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.made += 1
                yield item
        finally:
            self.closed = True


@pytest.fixture
async def client() -> AsyncIterator[AsgiClient]:
    yield AsgiClient(path="/", headers={}, body=b"")
    assert [task for task in asyncio.all_tasks() if "EventStream" in repr(task)] == []


def stream(source: Source) -> EventStream:
    return EventStream(
        source.events(), to_problem=lambda error: error if isinstance(error, Problem) else InternalError()
    )


async def test_each_event_is_sent_at_once_and_then_the_end(client: AsgiClient) -> None:
    source = Source()
    async with request(stream(source), client):
        for number in (1, 2):
            source.queue.put_nowait(event("step", f'{{"number":{number}}}'))
            if number == 1:
                assert (await client.start())["status"] == 200
            assert await client.event() == ("step", {"number": number})
            assert not client.has_answer
        source.queue.put_nowait(None)
        assert await client.chunk() == b""
    assert source.closed


async def test_headers_keep_proxies_from_caching_or_buffering_events(client: AsgiClient) -> None:
    async with request(stream(Source(event("step", "{}"), None)), client):
        headers = dict((await client.start())["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers


@pytest.mark.parametrize("error", [TooManyRequests("Full.", retry_after=3), ValueError("a defect")])
async def test_what_goes_wrong_before_the_first_event_is_left_to_those_who_answer_errors(
    client: AsgiClient, error: Exception
) -> None:
    async with request(stream(Source(error)), client) as task:
        with pytest.raises(type(error)):
            await task
    assert not client.has_answer


async def test_a_problem_after_the_first_event_is_the_last_event(client: AsgiClient) -> None:
    problem = DeadlineExceeded("Too late.", errors=[], limit=3)
    async with request(stream(Source(event("step", "{}"), problem)), client) as task:
        await client.start()
        await client.event()
        assert await client.event() == ("error", problem.document(instance="1"))
        await task
    assert not client.has_answer


async def test_an_internal_error_after_the_first_event_is_logged_and_sent_without_details(
    client: AsgiClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with request(stream(Source(event("step", "{}"), ValueError("a secret"))), client) as task:
        await client.start()
        await client.event()
        name, document = await client.event()
        await task
    assert (name, document["status"], document["type"]) == ("error", 500, "urn:titok:problem:internal-error")
    assert "secret" not in str(document)
    assert "a secret" in caplog.text


async def test_silence_is_broken_by_comments_before_the_first_event_and_after(
    client: AsgiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_SECONDS", 0.001)
    source = Source()
    async with request(stream(source), client):
        assert (await client.start())["status"] == 200
        for number in range(3):
            assert await client.chunk() == await client.chunk() == KEEP_ALIVE
            source.queue.put_nowait(event("step", str(number)))
            while (chunk := await client.chunk()) == KEEP_ALIVE:
                pass
            assert chunk == event("step", str(number))


async def test_a_client_that_hangs_up_ends_the_making_of_events(client: AsgiClient) -> None:
    source = Source(event("step", "{}"))
    async with request(stream(source), client) as task:
        await client.start()
        await client.event()
        client.hang_up()
        await task
        assert source.closed


async def test_events_are_produced_at_the_pace_of_the_client(client: AsgiClient) -> None:
    source = Source(*[event("step", "{}")] * 20, None)
    client.stop_reading()
    async with request(stream(source), client) as task:
        await client.until_stuck()
        for _ in range(100):
            await asyncio.sleep(0)
        assert source.made == 1
        client.read_on()
        await task
    assert source.made == 20


async def test_a_client_that_reads_nothing_is_disconnected(client: AsgiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "STALLED_SECONDS", 0.001)
    source = Source(event("step", "{}"), event("step", "{}"))
    client.stop_reading()
    async with request(stream(source), client) as task:
        await task
        assert source.closed
        assert source.made == 1


async def test_a_server_that_gives_up_sends_an_error_event(client: AsgiClient) -> None:
    source = Source(event("step", "{}"))
    async with request(stream(source), client) as task:
        await client.start()
        await client.event()
        task.cancel()
        name, document = await client.event()
        assert (name, document["status"]) == ("error", 503)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert source.closed


def test_an_error_event_holds_the_same_json_as_a_problem_response() -> None:
    problem: Problem = TooManyRequests("Full.", retry_after=3, queue="ü\ud800")
    assert problem_response(problem, instance="7").body == problem.to_json(instance="7").encode()
