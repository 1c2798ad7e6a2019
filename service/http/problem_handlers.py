"""Exception handlers: every exception that reaches the application becomes a problem document."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.errors import ErrorDetail
from service.http.problems import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
    problem_response,
)

log = logging.getLogger(__name__)


def add_problem_handlers(app: FastAPI) -> None:
    """Registers the handlers of ``Problem`` and of the framework's own exceptions."""
    for kind, handler in _HANDLERS.items():
        app.exception_handler(kind)(handler)


async def handle_problem(request: Request, problem: Problem) -> Response:
    """The response of a problem; an internal error is logged with its cause."""
    request_id = getattr(request.state, "request_id", None)
    if problem.kind is InternalError:
        log.error("request %s failed", request_id, exc_info=problem, extra={"request_id": request_id})
    return problem_response(problem, instance=request_id)


async def _handle_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
    details = [
        ErrorDetail(
            pointer="/".join(map(str, place["loc"])),
            detail=place["msg"],
            value=str(place.get("input"))[:80],
            expected=", ".join(f"{key} {bound}" for key, bound in place.get("ctx", {}).items()) or None,
        )
        for place in error.errors()[:16]
    ]
    return await handle_problem(request, InvalidRequest(f"{details[0].pointer}: {details[0].detail}.", errors=details))


async def _handle_http_exception(request: Request, error: HTTPException) -> Response:
    """Unknown paths and methods."""
    return await handle_problem(request, _problem_of(request, error))


def _problem_of(request: Request, error: HTTPException) -> Problem:
    path = request.url.path[:200]
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            hint = "Metrics are served on the admin port." if path == "/metrics" else "GET /docs lists the routes."
            return NotFound(f"There is nothing at {path}. {hint}")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = dict(error.headers or {})
            methods = allowed.get("Allow", "other methods")
            return MethodNotAllowed(f"{path} does not accept {request.method[:20]}, but {methods}.", headers=allowed)
        case _:
            return InternalError(str(error.detail))


async def _handle_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody reads this response; its status is for the metrics (499, as in nginx)."""
    return Response(status_code=499)


_HANDLERS: Mapping[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    Problem: handle_problem,
    RequestValidationError: _handle_invalid_parameter,
    HTTPException: _handle_http_exception,
    ClientDisconnect: _handle_disconnect,
}
