"""How long a request's body may be, and the memory that all bodies may take together, as pure ASGI middleware.

A promise takes no room, bytes that have arrived do: a client that announces a long body and sends nothing keeps nobody out.
Nothing ever waits for room, so that no two requests can wait for each other's.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ErrorDetail
from service.http.problems import ContentTooLarge, Problem, TooManyRequests, problem_response

__all__ = ["BodyLimits"]

_RETRY_SECONDS = 1.0


class BodyLimits:
    """Refuses a body longer than ``max_bytes``, and one for which there is no room among ``max_bytes_in_flight``: by its
    Content-Length, or as soon as that much has arrived. A body counts until its request has been answered.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_bytes_in_flight: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._room = max_bytes_in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = _announced_length(scope)
        try:
            self._check(announced, announced)
        except Problem as problem:
            await problem_response(problem, instance=scope.get("state", {}).get("request_id"))(scope, receive, send)
            return
        received = held = 0

        async def limited_receive() -> Message:
            nonlocal received, held
            message = await receive()
            if message["type"] == "http.request":
                length = len(message.get("body", b""))
                received += length
                self._check(received, length)
                held += length
                self._room -= length
            return message

        try:
            await self._app(scope, limited_receive, send)
        finally:
            self._room += held

    def _check(self, length: int, more: int) -> None:
        """Raises the problem of a body of so many bytes, ``more`` of which are to be held from now on."""
        # Not by way of a variable: its frame, and with it the body, would live as long as the exception, in a circle.
        if length > self._max_bytes:
            raise _too_long(length, self._max_bytes)
        if more > self._room:
            raise _full()


def _too_long(length: int, most: int) -> ContentTooLarge:
    return ContentTooLarge(
        f"The body has {length} bytes or more; at most {most} are taken.",
        errors=[ErrorDetail(pointer="body", detail="body too long", value=length, expected=f"at most {most} bytes")],
        headers={"Connection": "close"},
    )


def _full() -> TooManyRequests:
    problem = TooManyRequests(
        "The memory for request bodies is full. Try again after the time in Retry-After.", retry_after=_RETRY_SECONDS
    )
    problem.headers["Connection"] = "close"
    return problem


def _announced_length(scope: Scope) -> int:
    """Bytes of the body by its Content-Length; 0 where there is none that can be read."""
    given = Headers(scope=scope).get("content-length", "")
    return int(given) if given.isascii() and given.isdigit() else 0
