"""Pure ASGI: adds to every answer of a request what the gate had to say of its rate."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RateHeaders"]


class RateHeaders:
    """Adds ``RateLimit`` and ``RateLimit-Policy`` from ``scope["state"]["rate_headers"]``, if they are there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_rate(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in scope["state"].get("rate_headers", {}).items():
                    answer[name] = value
            await send(message)

        await self._app(scope, receive, send_with_rate)
