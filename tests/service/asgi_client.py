"""A client at the seam that servers call: it reads when the test says so, and may hang up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Scope


class AsgiClient:
    """One request. What the application sends is kept until the test takes it."""

    def __init__(self, *, path: str, headers: dict[str, str], body: bytes) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {"request_id": "1"},
        }
        self.messages_read = 0
        self._requests: asyncio.Queue[Message] = asyncio.Queue()
        self._requests.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._reads, self._sends = asyncio.Event(), asyncio.Event()
        self._reads.set()

    def stop_reading(self) -> None:
        """Whatever is sent from now on is stuck on the way."""
        self._reads.clear()
        self._sends.clear()

    async def until_stuck(self) -> None:
        """Waits for something that is stuck on the way."""
        await self._sends.wait()

    def read_on(self) -> None:
        self._reads.set()

    def hang_up(self) -> None:
        self._requests.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        self.messages_read += 1
        return await self._requests.get()

    async def send(self, message: Message) -> None:
        self._sends.set()
        await self._reads.wait()
        self._answers.put_nowait(message)

    async def start(self) -> Message:
        """The status and the headers, once they are there."""
        message = await self._answers.get()
        assert message["type"] == "http.response.start"
        return message

    async def chunk(self) -> bytes:
        """The next piece of the body; empty at its end."""
        message = await self._answers.get()
        assert message["type"] == "http.response.body"
        return bytes(message["body"])

    async def event(self) -> tuple[str, Any]:
        """The next event's name and its data."""
        name, data = (await self.chunk()).decode().removesuffix("\n\n").split("\n")
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    @property
    def has_answer(self) -> bool:
        """Whether something was sent that has not been taken."""
        return not self._answers.empty()


@asynccontextmanager
async def request(app: ASGIApp, client: AsgiClient) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the application on a request; it has ended when the block has."""
    task = asyncio.ensure_future(app(client.scope, client.receive, client.send))
    try:
        yield task
    finally:
        client.read_on()
        client.hang_up()
        await asyncio.gather(task, return_exceptions=True)
