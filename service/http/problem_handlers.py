"""What becomes of an exception that reaches the application: a problem document, always."""

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

from service.http.problems import (
    ContentTooLarge,
    InternalError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    Problem,
    ProblemDetail,
    problem_response,
)

__all__ = ["add_problem_handlers", "answer_to"]

log = logging.getLogger(__name__)


def add_problem_handlers(app: FastAPI) -> None:
    """Registers them."""
    for kind, handler in _HANDLERS.items():
        app.exception_handler(kind)(handler)


async def answer_to(request: Request, error: Exception) -> Response:
    """The answer that the application gives to an exception. Raises the exception if there is none."""
    for kind, handler in _HANDLERS.items():
        if isinstance(error, kind):
            return await handler(request, error)
    raise error


def _answer(request: Request, problem: Problem) -> Response:
    return problem_response(problem, instance=getattr(request.state, "request_id", None))


async def _on_problem(request: Request, problem: Problem) -> Response:
    if isinstance(problem, InternalError):
        request_id = getattr(request.state, "request_id", None)
        log.error("request %s failed", request_id, exc_info=problem, extra={"request_id": request_id})
    return _answer(request, problem)


async def _on_invalid_parameter(request: Request, error: RequestValidationError) -> Response:
    places = [
        ProblemDetail(
            pointer="/".join(str(part) for part in place["loc"]),
            detail=str(place["msg"]),
            value=str(place.get("input"))[:80],
            expected=", ".join(f"{key} {bound}" for key, bound in place.get("ctx", {}).items()) or None,
        )
        for place in error.errors()[:16]
    ]
    return _answer(request, InvalidRequest(f"{places[0].pointer}: {places[0].detail}.", errors=places))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """What the framework refuses on its own: unknown paths and methods, and forms it cannot read."""
    path = request.url.path[:200]
    if error.status_code == HTTPStatus.NOT_FOUND:
        hint = "Metrics are served on the admin port." if path == "/metrics" else "GET /docs lists the routes."
        return _answer(request, NotFound(f"There is nothing at {path}. {hint}"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = dict(error.headers or {})
        detail = f"{path} does not take {request.method[:20]}, but {allowed.get('Allow', 'other methods')}."
        return _answer(request, MethodNotAllowed(detail, headers=allowed))
    if error.status_code == HTTPStatus.BAD_REQUEST:
        if "Too many files" in str(error.detail):
            limit = request.app.state.context.settings.max_images
            return _answer(request, ContentTooLarge(f"The form holds too many files; at most {limit} are taken."))
        return _answer(request, MalformedBody(f"The body cannot be read: {error.detail}."))
    return _answer(request, InternalError(str(error.detail)))


async def _on_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody reads this answer; its status is for the metrics (499, as nginx counts it)."""
    return Response(status_code=499)


_HANDLERS: Mapping[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    Problem: _on_problem,
    RequestValidationError: _on_invalid_parameter,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
}
