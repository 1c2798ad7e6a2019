"""The table of domain errors and the problem documents that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from service.engine import DeadlineExceeded, DeviceFailed, EngineError, EngineStopped, QueueFull, WorkerCrashed
from service.errors import ServiceError
from service.http import problems
from service.http.deadlines import deadline_exceeded
from service.http.problem_handlers import add_problem_handlers, handle_problem
from service.http.problems import Problem, ProblemType
from service.imaging.errors import ImageTooLarge, UndecodableImage, UnsupportedImageFormat
from service.inference.model_info import NoTokenIds
from service.operations import errors

_RETRY_SECONDS = 2.0  # while no model or no device is ready

_SERVICE_ERRORS: Mapping[type[ServiceError], ProblemType] = {
    UndecodableImage: problems.UndecodableImage,
    UnsupportedImageFormat: problems.UnsupportedMediaType,
    ImageTooLarge: problems.ContentTooLarge,
    NoTokenIds: problems.InvalidRequest,
    errors.NotServed: problems.NotFound,
    errors.UnknownModel: problems.UnknownModel,
    errors.UnknownClass: problems.UnknownClass,
    errors.RevisionMismatch: problems.RevisionMismatch,
    errors.TooManyImages: problems.ContentTooLarge,
    errors.InvalidArgument: problems.InvalidRequest,
}


def _queue_full(error: QueueFull) -> Problem:
    if error.retry_after is None:
        return problems.ContentTooLarge(f"{error}. Split the request.")
    return problems.TooManyRequests(f"{error}. Try again after the time in Retry-After.", retry_after=error.retry_after)


_OTHER_ERRORS: Mapping[type[Exception], Callable[[Any], Problem]] = {
    errors.ModelsNotLoaded: lambda error: problems.Unavailable(str(error), retry_after=_RETRY_SECONDS),
    QueueFull: _queue_full,
    DeadlineExceeded: lambda _: deadline_exceeded(),
    EngineStopped: lambda error: problems.Unavailable(f"{error}.", retry_after=_RETRY_SECONDS),
    WorkerCrashed: lambda error: problems.WorkerCrashed(f"{error}. It is not tried again."),
    DeviceFailed: lambda _: problems.InternalError(
        "The device failed on this request. The service log has the cause under the request id."
    ),
}


def to_problem(error: Exception) -> Problem:
    """The problem of any exception; its cause is the exception. Unknown ones are ``InternalError``."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ServiceError) and (kind := _SERVICE_ERRORS.get(type(error))) is not None:
        problem = kind(str(error), errors=error.errors, **error.extensions)
    else:
        problem = _OTHER_ERRORS.get(type(error), lambda _: problems.InternalError())(error)
    problem.__cause__ = error
    return problem


def add_error_handlers(app: FastAPI) -> None:
    """Registers handlers for domain errors, problems, and the framework's own exceptions."""
    add_problem_handlers(app)

    async def handle(request: Request, error: Exception) -> Response:
        return await handle_problem(request, to_problem(error))

    for kind in (ServiceError, EngineError):
        app.add_exception_handler(kind, handle)
