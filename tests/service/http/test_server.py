"""Shutdown of the HTTP server: what it waits for, closes and cancels."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from service.http.protocol import ConnectionLimits
from service.http.server import HttpServer
from service.http.sockets import listen

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    *, idle_seconds: float, drain_seconds: float = 60.0, answer: asyncio.Event | None = None
) -> AsyncIterator[tuple[HttpServer, socket.socket, asyncio.Task[None]]]:
    async def endpoint(_: Request) -> PlainTextResponse:
        if answer is not None:
            await answer.wait()
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", endpoint)])
    with listen("127.0.0.1", 0) as listener:
        server = HttpServer(
            app,
            listener,
            lifespan="off",
            drain_seconds=drain_seconds,
            idle_seconds=idle_seconds,
            limits=ConnectionLimits(connections=100, header_bytes=4096, header_seconds=60.0),
        )
        running = asyncio.create_task(server.run_until_stopped())
        await until(lambda: server.started)
        yield server, listener, running
        await asyncio.wait_for(running, 60)


@asynccontextmanager
async def connected(listener: socket.socket) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(5)


async def test_a_connection_that_was_just_used_accepts_one_more_request() -> None:
    async with serving(idle_seconds=60.0) as (server, listener, running), connected(listener) as connection:
        assert await ask(*connection) == b"hello"
        server.stop_accepting(shared=False)
        await asyncio.wait((running,), timeout=0.5)
        assert await ask(*connection) == b"hello"


async def test_an_idle_connection_is_closed() -> None:
    async with (
        serving(idle_seconds=0.1) as (server, listener, _),
        connected(listener) as used,
        connected(listener) as unused,
    ):
        assert await ask(*used) == b"hello"
        server.stop_accepting(shared=False)
        for reader, _ in (used, unused):
            assert await reader.read() == b""


async def test_a_partially_received_request_is_waited_for() -> None:
    async with serving(idle_seconds=0.1) as (server, listener, running), connected(listener) as (reader, writer):
        assert await ask(reader, writer) == b"hello"
        (connection,) = server.server_state.connections
        writer.write(REQUEST[:20])
        await until(lambda: not connection.is_idle)
        server.stop_accepting(shared=False)
        await asyncio.wait((running,), timeout=0.5)
        writer.write(REQUEST[20:])
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_connections_in_the_backlog_are_served() -> None:
    async with serving(idle_seconds=0.1) as (server, listener, _), connected(listener):
        await until(lambda: server.server_state.connections)
        asyncio.get_running_loop().remove_reader(listener)  # as if the event loop had not accepted it yet
        async with connected(listener) as (late_reader, late_writer):
            late_writer.write(REQUEST)
            server.stop_accepting(shared=False)
            assert (await late_reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_a_request_that_outlives_the_drain_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    never = asyncio.Event()
    async with (
        serving(idle_seconds=0.1, drain_seconds=0.2, answer=never) as (server, listener, _),
        connected(listener) as (reader, writer),
    ):
        writer.write(REQUEST)
        await until(lambda: server.server_state.tasks)
        server.stop_accepting(shared=False)
        assert b" 500 " in await reader.readline()
    assert "cancelling 1 requests: the time to drain is over" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_server_that_shares_its_listener_leaves_the_backlog_to_others() -> None:
    async with serving(idle_seconds=0.1) as (server, listener, running):
        with listener.dup() as other:
            server.stop_accepting(shared=True)
            await asyncio.wait_for(running, 60)
            with socket.create_connection(other.getsockname(), timeout=60), other.accept()[0]:
                pass
