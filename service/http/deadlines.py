"""The deadline of a request."""

from __future__ import annotations

import time

from fastapi import Request

from service.errors import ErrorDetail
from service.http.problems import InvalidRequest

TIMEOUT_HEADER = "X-Request-Timeout-Ms"


def request_deadline(request: Request, max_seconds: float) -> float:
    """The end of a request's time on ``time.monotonic``: ``max_seconds`` from now, or less by ``X-Request-Timeout-Ms``.

    Raises ``InvalidRequest`` for a header that is not a whole number of milliseconds from 1.
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return time.monotonic() + max_seconds
    if not (given.isascii() and given.isdigit() and len(given) <= 10 and int(given) >= 1):
        raise InvalidRequest(
            f"{TIMEOUT_HEADER} is {given[:40]!r}; a whole number of milliseconds from 1 is expected.",
            errors=[ErrorDetail(pointer=f"header/{TIMEOUT_HEADER}", detail="not a time", value=given[:40])],
        )
    return time.monotonic() + min(max_seconds, int(given) / 1000)
