"""Paced refusals: clients that ask again as soon as they are answered 429 do not take the processor from others."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAUSE_SECONDS = 1.0
MAX_WAITING = 1024


class PacedRefusals:
    """ASGI middleware inside of ``Deadlines``: a response 429 begins ``PAUSE_SECONDS`` after its request at the earliest, or
    at its deadline. Not more than ``MAX_WAITING`` wait at a time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        due = time.monotonic() + PAUSE_SECONDS

        async def send_paced(message: Message) -> None:
            if message.get("status") == HTTPStatus.TOO_MANY_REQUESTS and self._waiting < MAX_WAITING:
                self._waiting += 1
                try:
                    await asyncio.sleep(min(due, scope["state"]["deadline"]) - time.monotonic())
                finally:
                    self._waiting -= 1
            await send(message)

        await self._app(scope, receive, send_paced)
