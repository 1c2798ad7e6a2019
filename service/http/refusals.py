"""Paced refusals: clients that ask again as soon as they are answered 429 do not take the processor from others."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PAUSE_SECONDS = 1.0
MAX_WAITING = 1024


class PacedRefusal(Response):
    """A response that begins ``PAUSE_SECONDS`` after its request at the earliest, or at its deadline. Not more than
    ``MAX_WAITING`` wait at a time.
    """

    _waiting: ClassVar[int] = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if PacedRefusal._waiting < MAX_WAITING:
            state = scope["state"]
            PacedRefusal._waiting += 1
            try:
                await asyncio.sleep(min(PAUSE_SECONDS - state["timings"].total, state["deadline"] - time.monotonic()))
            finally:
                PacedRefusal._waiting -= 1
        await super().__call__(scope, receive, send)
