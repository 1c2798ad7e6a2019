"""Limits on connections and headers, tested with raw sockets on a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from service.http.protocol import IGNORED_BYTES, ConnectionLimits
from service.http.server import HttpServer
from service.http.sockets import listen

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 8192
PATIENCE = 60.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Service:
    """A server whose responses wait for ``answer``; it counts requests in ``asked``."""

    def __init__(self, **limits: Any) -> None:
        self.answer = asyncio.Event()
        self.answer.set()
        self.asked = 0
        self.refused: list[tuple[int, str]] = []
        listener = listen("127.0.0.1", 0)
        self.address = listener.getsockname()
        self.server = HttpServer(
            Starlette(
                routes=[
                    Route("/", self._endpoint, methods=["GET", "POST"]),
                    Route("/echo", self._echo, methods=["GET", "POST"]),
                    Route("/stream", self._stream),
                ]
            ),
            listener,
            lifespan="off",
            drain_seconds=PATIENCE,
            idle_seconds=0.0,
            limits=ConnectionLimits(**{"connections": 100, "header_bytes": 4096, "header_seconds": PATIENCE, **limits}),
            on_refusal=lambda status, request_id: self.refused.append((status, request_id)),
        )

    async def _endpoint(self, _: Request) -> PlainTextResponse:
        self.asked += 1
        await self.answer.wait()
        return PlainTextResponse("hello")

    async def _echo(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    async def _stream(self, _: Request) -> StreamingResponse:
        async def letters() -> AsyncIterator[str]:
            await self.answer.wait()
            yield "abc"

        return StreamingResponse(letters())

    async def connect(self) -> Connection:
        return await asyncio.open_connection(*self.address)

    async def until(self, connections: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.server.server_state.connections) != connections:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.asked < times:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Service]:
    service = Service(**limits)
    running = asyncio.create_task(service.server.run_until_stopped())
    async with asyncio.timeout(PATIENCE):
        while not service.server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        try:
            yield service
        finally:
            service.answer.set()
            service.server.stop_accepting(shared=False)
            await running


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next response."""
    async with asyncio.timeout(PATIENCE):
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def check_refusal(service: Service, connection: Connection, status: int, slug: str) -> dict[str, str]:
    """Checks that a problem document arrives, and then the end of the connection, and that the refusal is reported."""
    reader, writer = connection
    got, headers, body = await answer_of(reader)
    assert (got, headers["content-type"]) == (status, "application/problem+json")
    document = json.loads(body)
    assert (document["type"], document["instance"]) == (f"urn:titok:problem:{slug}", headers["x-request-id"])
    assert headers["connection"] == "close"
    assert service.refused[-1] == (status, headers["x-request-id"])
    async with asyncio.timeout(PATIENCE):
        assert await reader.read() == b""
    writer.close()
    return headers


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * LARGE, id="a header without an end"),
        pytest.param(b"GET /" + b"x" * LARGE, id="an address without an end"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * LARGE, id="headers without an end"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * LARGE + b"\r\n\r\n", id="a long header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * LARGE + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"x" * LARGE + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="a long address"),
        pytest.param(
            b"POST / HTTP/1.1\r\nX: " + b"x" * LARGE + b"\r\nContent-Length: 3\r\n\r\nabc" + REQUEST,
            id="a long header, a body and another request",
        ),
    ],
)
async def test_headers_over_the_limit_are_refused_complete_or_not(sent: bytes) -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        writer.write(sent)
        await check_refusal(service, (reader, writer), 431, "headers-too-large")
        assert service.asked == 0


@pytest.mark.parametrize(
    "endless",
    [
        # Longer than one read of the socket, the first of which ends a piece of the body.
        pytest.param(b"1\r\nx\r\n0\r\nX: " + b"x" * 64 * LARGE, id="a trailer"),
        pytest.param(b"1;" + b"x" * LARGE, id="a chunk's extension"),
    ],
)
async def test_trailers_and_chunk_extensions_are_limited_like_headers(endless: bytes) -> None:
    async with serving() as service:
        service.answer.clear()
        reader, writer = await service.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await service.until_asked(1)
        writer.write(endless)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_headers_within_the_limit_and_a_long_body_are_accepted() -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        body = b"x" * 100_000
        for _ in range(2):
            writer.write(
                b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 3900 + b"\r\nContent-Length: 100000\r\n\r\n" + body
            )
            assert (await answer_of(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["the first", "the second"])
async def test_headers_that_take_too_long_are_refused(before: bytes) -> None:
    async with serving(header_seconds=0.05) as service:
        reader, writer = await service.connect()
        if before:
            writer.write(before)
            assert (await answer_of(reader))[0] == 200
        writer.write(b"GET / HTTP/1.1\r\nHost:")
        await check_refusal(service, (reader, writer), 408, "request-timeout")


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    async with serving(header_seconds=0.05) as service:
        reader, writer = await service.connect()
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        writer.close()


async def test_the_time_for_headers_does_not_count_while_a_request_is_answered() -> None:
    async with serving(header_seconds=0.05) as service:
        service.answer.clear()
        reader, writer = await service.connect()
        writer.write(REQUEST)
        await service.until_asked(1)
        silent, silent_writer = await service.connect()
        async with asyncio.timeout(PATIENCE):
            assert await silent.read() == b""  # the time is over
        silent_writer.close()
        service.answer.set()
        assert (await answer_of(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00 hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n" + REQUEST,
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "CONNECT with a path", "CONNECT"],
)
async def test_bytes_that_are_not_http_are_refused_with_a_problem(sent: bytes) -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        writer.write(sent)
        await check_refusal(service, (reader, writer), 400, "malformed-request")


class Recorder:
    """A transport that records what is written."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self._transport.write(data)


async def test_the_head_of_a_response_is_sent_with_its_body_or_alone_if_that_comes_later() -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        await service.until(1)
        [connection] = service.server.server_state.connections
        connection.transport = recorder = Recorder(connection.transport)
        writer.write(REQUEST)
        assert (await answer_of(reader))[2] == b"hello"
        writer.write(REQUEST.replace(b"GET", b"HEAD"))
        async with asyncio.timeout(PATIENCE):
            await reader.readuntil(b"\r\n\r\n")
        assert len(recorder.written) == 2
        service.answer.clear()
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            service.answer.set()
            assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\nabc\r\n0\r\n\r\n"
        writer.close()


async def test_a_client_is_told_to_continue_before_it_sends_the_body() -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await answer_of(reader))[::2] == (200, b"hello")
        writer.close()


async def test_a_connection_over_the_limit_is_handled_without_a_look_at_all_others() -> None:
    class Uncounted(set[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("iterates over all connections")

    async with serving(connections=2) as service:
        service.server.server_state.connections = Uncounted()
        idle = [await service.connect() for _ in range(2)]
        await service.until(2)
        _, busy = await service.connect()
        async with asyncio.timeout(PATIENCE):
            assert await idle[0][0].read() == b""
        service.answer.clear()
        for writer in (idle[1][1], busy):
            writer.write(REQUEST)
        await service.until_asked(2)
        await check_refusal(service, await service.connect(), 503, "unavailable")
        for writer in (idle[0][1], idle[1][1], busy):
            writer.close()


async def test_a_new_connection_over_the_limit_closes_the_longest_idle_one() -> None:
    async with serving(connections=2) as service:
        oldest, oldest_writer = await service.connect()
        await service.until(1)
        younger, younger_writer = await service.connect()
        await service.until(2)
        newest, newest_writer = await service.connect()
        async with asyncio.timeout(PATIENCE):
            assert await oldest.read() == b""
        for reader, writer in ((younger, younger_writer), (newest, newest_writer)):
            writer.write(REQUEST)
            assert (await answer_of(reader))[0] == 200
        for writer in (oldest_writer, younger_writer, newest_writer):
            writer.close()


async def test_a_connection_over_the_limit_is_refused_when_none_is_idle() -> None:
    async with serving(connections=2) as service:
        service.answer.clear()
        working = [await service.connect() for _ in range(2)]
        for _, writer in working:
            writer.write(REQUEST)
        await service.until_asked(2)
        refused = await check_refusal(service, await service.connect(), 503, "unavailable")
        assert refused["retry-after"] == "1"
        service.answer.set()
        for reader, writer in working:
            assert (await answer_of(reader))[0] == 200
            writer.close()


async def test_a_body_that_continues_after_the_response_is_cut_off() -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await answer_of(reader))[0] == 200
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

        async def send_on() -> None:
            for _ in range(64 * IGNORED_BYTES // len(chunk)):
                writer.write(chunk)
                await writer.drain()

        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ConnectionError):
                await send_on()
        writer.transport.abort()


async def test_a_client_that_is_still_sending_can_read_the_response_that_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.protocol.HALF_CLOSED_SECONDS", PATIENCE)
    async with serving() as service:
        loop = asyncio.get_running_loop()
        with socket.create_connection(service.address) as client:
            client.setblocking(False)
            await loop.sock_sendall(
                client, b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await service.until_asked(1)
            # More than the buffers between the two hold: the server must take it off the wire.
            for _ in range(500):
                await loop.sock_sendall(client, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            answer = await loop.sock_recv(client, 65536)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_connection_is_idle_again_when_all_pipelined_requests_are_answered() -> None:
    async with serving() as service:
        service.answer.clear()
        reader, writer = await service.connect()
        writer.write(3 * REQUEST)
        await service.until_asked(1)
        [connection] = service.server.server_state.connections
        assert not connection.is_idle
        service.answer.set()
        for _ in range(3):
            assert (await answer_of(reader))[0] == 200
        assert connection.is_idle
        writer.close()
