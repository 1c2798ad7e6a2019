"""The memory that request bodies may take together, as pure ASGI middleware.

A promise takes no room, bytes that have arrived do: a client that announces a long body and sends nothing keeps nobody out.
Nothing ever waits for room, so that no two requests can wait for each other's.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.middleware import announced_length, refuse
from service.problems import TooManyRequests

__all__ = ["BodyMemory"]

_RETRY_SECONDS = 1.0


class BodyMemory:
    """Refuses a body for which there is no room among ``max_bytes``, by its Content-Length or when it has filled what there
    was. A body counts until its request has been answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._held + announced_length(scope) > self._max_bytes:
            await refuse(self._full(), scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                length = len(message.get("body", b""))
                if self._held + length > self._max_bytes:
                    raise self._full()
                received += length
                self._held += length
            return message

        try:
            await self._app(scope, counted_receive, send)
        finally:
            self._held -= received

    def _full(self) -> TooManyRequests:
        problem = TooManyRequests(
            "The memory for request bodies is full. Try again after the time in Retry-After.",
            retry_after=_RETRY_SECONDS,
        )
        problem.headers["Connection"] = "close"
        return problem
