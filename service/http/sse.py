"""Server-sent events (WHATWG HTML, section 9.2): the status is sent with the first event, and errors are events after it.

::

    first event ──> 200, then events, and comments as keep-alive ──> last event
         │                       │                        │
    error before it:        error after it:          client disconnected, or reads nothing:
    its own status          event: error             the generator of events is cancelled
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.http.disconnects import run_while_connected
from service.http.problems import InternalError, Problem, shutting_down

log = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_SECONDS = 10.0  # without an event until a comment is sent; proxies close idle connections
STALLED_SECONDS = 30.0  # until a client that reads nothing counts as disconnected
_KEEP_ALIVE = format_sse_event(comment="keep-alive")


def event(name: str, data: str) -> bytes:
    """An event on the wire; ``data`` is JSON."""
    return format_sse_event(event=name, data_str=data)


# The wire format is FastAPI's. Its streaming routes, and sse-starlette, send 200 before there is a first event, so that an
# error could not have a status of its own; and sse-starlette ends streams at SIGTERM, where this service drains.
class EventStream(EventSourceResponse):
    """Sends events made by ``event``. The generator is always closed before the response ends.

    The response begins with the first event, or with a keep-alive comment if that is slow. Until then an error has its own
    status; after it, an event ``error`` with the problem document of ``to_problem`` ends the stream.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], *, to_problem: Callable[[Exception], Problem]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._to_problem = to_problem
        self._events = events
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope, receive)
        try:
            await run_while_connected(request, self._answer(request, send))
        except ClientDisconnect:
            if not self._begun:
                raise
        except asyncio.CancelledError:
            # The server cancels a request only when the drain time is over.
            if self._begun:
                with suppress(ClientDisconnect):
                    await self._fail(request, send, shutting_down())
            raise

    async def _answer(self, request: Request, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await self._send_events(send)
        except ClientDisconnect:
            raise
        except Exception as error:
            if not self._begun:
                raise
            problem = self._to_problem(error)
            if problem.kind is InternalError:
                request_id = request.state.request_id
                log.exception("request %s failed", request_id, extra={"request_id": request_id})
            await self._fail(request, send, problem)
        else:
            await self._send(send, b"", more_body=False)

    async def _send_events(self, send: Send) -> None:
        while True:
            upcoming = asyncio.ensure_future(self._next())
            try:
                while not (await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_SECONDS))[0]:
                    await self._send(send, _KEEP_ALIVE)
                chunk = upcoming.result()
            finally:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)
            if chunk is None:
                return
            await self._send(send, chunk)

    async def _next(self) -> bytes | None:
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            return None

    async def _fail(self, request: Request, send: Send, problem: Problem) -> None:
        request.state.has_failed = True
        chunk = event("error", problem.to_json(instance=request.state.request_id))
        await self._send(send, chunk, more_body=False)

    async def _send(self, send: Send, chunk: bytes, *, more_body: bool = True) -> None:
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": chunk, "more_body": more_body})
        except TimeoutError:
            log.info("client has not read its events for %g seconds", STALLED_SECONDS)
            raise ClientDisconnect from None
