"""Reads request bodies. Large ones are parsed in a thread for images, so that other requests go on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import Request

from service.api.schemas.parsing import RequestT, parse_body
from service.api.state import ApiState
from service.errors import ErrorDetail
from service.http.negotiation import require_json
from service.http.problems import RequestTimeout, UnsupportedMediaType

T = TypeVar("T")

_THREAD_BYTES = 64 * 1024  # parsing this much takes about as long as the hand-over to a thread


async def read_body(request: Request) -> bytes:
    """The whole body; ``BodyLimits`` bounds its length. Raises ``RequestTimeout``, and ``UnsupportedMediaType`` for a body
    with a content encoding.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding is {encoding[:80]!r}. Send the body without one.",
            errors=[ErrorDetail(pointer="header/Content-Encoding", detail="not supported", value=encoding[:80])],
            headers={"Accept-Encoding": "identity"},
        )
    seconds = ApiState.of(request).settings.body_timeout
    try:
        async with asyncio.timeout(seconds):
            # ``request.body()`` would keep the bytes until the request ends. A single piece is not copied.
            return b"".join([piece async for piece in request.stream() if piece])
    except TimeoutError:
        raise RequestTimeout(
            f"The body did not arrive within {seconds:g} seconds.", headers={"Connection": "close"}
        ) from None


async def parse(request: Request, body: bytes, function: Callable[[bytes], T]) -> T:
    """``function(body)``; for a large body in one of the threads for images, which are bounded and drop cancelled calls."""
    if len(body) <= _THREAD_BYTES:
        return function(body)
    state = ApiState.of(request)
    return await state.operations.threads.run(function, body, deadline=state.deadline(request))


async def read_json(request: Request, schema: type[RequestT]) -> RequestT:
    """A JSON body as its schema. Raises the ``Problem`` of another media type, of a slow body, or of invalid JSON."""
    require_json(request.headers.get("content-type"))
    max_values = ApiState.of(request).max_json_values
    return await parse(request, await read_body(request), partial(parse_body, schema, max_values=max_values))
