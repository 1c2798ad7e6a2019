"""Requests that ask for another protocol: they are answered in HTTP/1.1."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.http.test_protocol import REQUEST, answer_of, serving

pytestmark = pytest.mark.anyio

H2C = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
WEBSOCKET = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eDEw\r\n"
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("upgrade", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["length", "chunked", "last"],
)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "byte by byte"])
async def test_an_upgrade_is_ignored_and_the_request_answered(upgrade: bytes, body: bytes, split: bool) -> None:
    sent = HEAD + upgrade + body
    async with serving() as service:
        reader, writer = await service.connect()
        for piece in [bytes([byte]) for byte in sent] if split else [sent]:
            writer.write(piece)
            await asyncio.sleep(0)
        assert (await answer_of(reader))[::2] == (200, b"hello")
        if b"close" not in body:
            writer.write(REQUEST)
            assert (await answer_of(reader))[0] == 200
        writer.close()


async def test_pipelined_requests_with_upgrades_are_answered_in_order() -> None:
    async with serving() as service:
        reader, writer = await service.connect()
        posts = [HEAD + H2C + b"Content-Length: 1\r\n\r\n" + letter for letter in (b"a", b"b")]
        writer.write(posts[0] + b"GET /echo HTTP/1.1\r\nHost: x\r\n" + WEBSOCKET + b"\r\n" + posts[1] + REQUEST)
        assert [(await answer_of(reader))[2] for _ in range(4)] == [b"a", b"", b"b", b"hello"]
        [connection] = service.server.server_state.connections
        assert connection.is_idle
        writer.close()
