"""Limits on the length of a request body and on the memory of all bodies in flight, as plain ASGI middleware.

Only bytes that have arrived use up memory: a client that announces a long body and sends nothing does not block others.
A body that does not fit is refused at once; waiting for memory could deadlock.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ErrorDetail
from service.http.negotiation import media_type_of
from service.http.problems import ContentTooLarge, Problem, TooManyRequests, problem_response

_RETRY_SECONDS = 1.0


class BodyLimits:
    """Refuses a body over ``max_bytes`` (``max_json_bytes`` if it is JSON) with 413, and one that would exceed
    ``max_bytes_in_flight`` with 429: by its Content-Length, or as soon as that many bytes have arrived. A body counts until
    its request has been answered.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_json_bytes: int, max_bytes_in_flight: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_json_bytes = min(max_bytes, max_json_bytes)
        self._free_bytes = max_bytes_in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_json = media_type_of(headers.get("content-type")) == "application/json"
        limit = self._max_json_bytes if is_json else self._max_bytes
        announced = _announced_length(headers)
        try:
            self._check(announced, announced, limit)
        except Problem as problem:
            await problem_response(problem, instance=scope.get("state", {}).get("request_id"))(scope, receive, send)
            return
        received = counted = 0

        async def limited_receive() -> Message:
            nonlocal received, counted
            message = await receive()
            if message["type"] == "http.request":
                length = len(message.get("body", b""))
                received += length
                self._check(received, length, limit)
                counted += length
                self._free_bytes -= length
            return message

        try:
            await self._app(scope, limited_receive, send)
        finally:
            self._free_bytes += counted

    def _check(self, length: int, more: int, limit: int) -> None:
        """Raises the problem of a body of ``length`` bytes so far, of which ``more`` are new; ``limit``: its maximum."""
        # No local variable for the problem: a cycle of exception, traceback and frame would keep the body in memory.
        if length > limit:
            raise _too_long(length, limit)
        if more > self._free_bytes:
            raise _full()


def _too_long(length: int, most: int) -> Problem:
    return ContentTooLarge(
        f"The body has {length} bytes or more; at most {most} are allowed.",
        errors=[ErrorDetail(pointer="body", detail="body too long", value=length, expected=f"at most {most} bytes")],
        headers={"Connection": "close"},
    )


def _full() -> Problem:
    return TooManyRequests(
        "The memory for request bodies is full. Try again after the time in Retry-After.",
        retry_after=_RETRY_SECONDS,
        headers={"Connection": "close"},
    )


def _announced_length(headers: Headers) -> int:
    """The Content-Length; 0 if it is missing or not a number."""
    given = headers.get("content-length", "")
    return int(given) if given.isascii() and given.isdigit() else 0
