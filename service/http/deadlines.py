"""The deadline of a request, which covers all of it: reading the body, waiting, computing, rendering."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ErrorDetail
from service.http.problems import DeadlineExceeded, InvalidRequest, Problem, problem_response

TIMEOUT_HEADER = "X-Request-Timeout-Ms"

# What waits for a deadline of its own, as the engine does, ends first: it knows more about the request.
_GRACE_SECONDS = 0.05


class Deadlines:
    """ASGI middleware: puts ``deadline`` into the request's state, the end of its time on ``time.monotonic``:
    ``max_seconds`` from its headers on, or less by ``X-Request-Timeout-Ms``. If no response has begun by then, the
    request's work is cancelled and it is answered 504.
    """

    def __init__(self, app: ASGIApp, *, max_seconds: float) -> None:
        self._app = app
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            seconds = request_seconds(Headers(scope=scope), self._max_seconds)
        except Problem as problem:
            await problem_response(problem, instance=state.get("request_id"))(scope, receive, send)
            return
        state["deadline"] = time.monotonic() + seconds
        timeout = asyncio.timeout(seconds + _GRACE_SECONDS)

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                timeout.reschedule(None)
            await send(message)

        try:
            async with timeout:
                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if not timeout.expired():
                raise
            late = deadline_exceeded(headers={"Connection": "close"})  # the body may not have arrived
            await problem_response(late, instance=state.get("request_id"))(scope, receive, send)


def deadline_exceeded(*, headers: Mapping[str, str] | None = None) -> Problem:
    """The problem of a request whose time is over."""
    return DeadlineExceeded(
        f"The answer was not ready in time. The limit is TITOK_REQUEST_TIMEOUT, or less by {TIMEOUT_HEADER}.",
        headers=headers,
    )


def request_seconds(headers: Headers, max_seconds: float) -> float:
    """The seconds that a request may take. Raises ``InvalidRequest`` for a header that is not a whole number of
    milliseconds from 1.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return max_seconds
    if not (given.isascii() and given.isdigit() and len(given) <= 10 and int(given) >= 1):
        raise InvalidRequest(
            f"{TIMEOUT_HEADER} is {given[:40]!r}; a whole number of milliseconds from 1 is expected.",
            errors=[ErrorDetail(pointer=f"header/{TIMEOUT_HEADER}", detail="not a time", value=given[:40])],
        )
    return min(max_seconds, int(given) / 1000)
