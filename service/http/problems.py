"""Problem documents (RFC 9457): every HTTP error of the service.

::

    Problem
    ├── UndecodableImage      400   the bytes are not a whole image of a known format
    ├── MalformedBody         400   not JSON, not multipart, or not what the header says
    ├── MalformedRequest      400   not HTTP
    ├── Unauthorized          401   no key, or an unknown one
    ├── Forbidden             403   a key without the role that the route requires
    ├── NotFound              404   no such route, or nothing at that address
    │   ├── UnknownModel      404
    │   └── UnknownClass      404
    ├── MethodNotAllowed      405
    ├── NotAcceptable         406   ``Accept`` allows no media type of the response
    ├── RequestTimeout        408   the headers or the body did not arrive in time
    ├── RevisionMismatch      409   tokens of another tokenizer or of another revision
    ├── ContentTooLarge       413   too many bytes, pixels or images
    ├── UnsupportedMediaType  415
    ├── InvalidRequest        422   the schema, an id or a parameter is out of range
    ├── TooManyRequests       429   a queue is full, or a rate limit is reached; see ``Retry-After``
    ├── HeadersTooLarge       431   the request's line and headers are too long
    ├── InternalError         500   a bug in the service
    ├── Unavailable           503   starting, draining, or no ready worker
    └── DeadlineExceeded      504   the deadline passed before the answer was ready

A message says what was wrong, what was expected and, where it helps, what to do. ``errors`` lists the offending values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.responses import Response

from service.errors import ErrorDetail

PROBLEM_MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An HTTP error with its problem document. Raise a subclass."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    slug: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[ErrorDetail] = (),
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extensions = extensions

    def document(self, *, instance: str | None = None) -> dict[str, Any]:
        """The problem document; ``instance`` names the request (its id)."""
        document: dict[str, Any] = {
            "type": f"urn:titok:problem:{self.slug}",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
        }
        if instance is not None:
            document["instance"] = instance
        if self.errors:
            document["errors"] = [error.document() for error in self.errors]
        return document | self.extensions

    def to_json(self, *, instance: str | None = None) -> str:
        """The problem document in plain ASCII: a value that is echoed may hold what UTF-8 can not."""
        return json.dumps(self.document(instance=instance), default=str)


class UndecodableImage(Problem):
    """The bytes are not a whole image of a known format."""

    status, slug, title = HTTPStatus.BAD_REQUEST, "undecodable-image", "The image cannot be decoded"


class MalformedBody(Problem):
    """The body is not what its Content-Type says."""

    status, slug, title = HTTPStatus.BAD_REQUEST, "malformed-body", "The request body is malformed"


class MalformedRequest(Problem):
    """Bytes that are not an HTTP request."""

    status, slug, title = HTTPStatus.BAD_REQUEST, "malformed-request", "The request is not HTTP"


class Unauthorized(Problem):
    """No API key, or an unknown one."""

    status, slug, title = HTTPStatus.UNAUTHORIZED, "unauthorized", "An API key is required"


class Forbidden(Problem):
    """A key without the role that the route requires."""

    status, slug, title = HTTPStatus.FORBIDDEN, "forbidden", "The API key does not have the role"


class NotFound(Problem):
    """No such route, or nothing at that address."""

    status, slug, title = HTTPStatus.NOT_FOUND, "not-found", "Not found"


class UnknownModel(NotFound):
    """A model name that this service does not serve."""

    slug, title = "unknown-model", "Unknown model"


class UnknownClass(NotFound):
    """A class id or name that the generator was not trained on."""

    slug, title = "unknown-class", "Unknown class"


class MethodNotAllowed(Problem):
    """The route exists, the method does not."""

    status, slug, title = HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed"


class NotAcceptable(Problem):
    """``Accept`` allows no media type of the response."""

    status, slug, title = HTTPStatus.NOT_ACCEPTABLE, "not-acceptable", "No acceptable media type"


class RequestTimeout(Problem):
    """The headers or the body did not arrive in time."""

    status, slug, title = HTTPStatus.REQUEST_TIMEOUT, "request-timeout", "The request took too long to arrive"


class RevisionMismatch(Problem):
    """Tokens of another tokenizer, or of another revision of this one."""

    status, slug, title = HTTPStatus.CONFLICT, "revision-mismatch", "The tokens belong to another tokenizer"


class Gone(Problem):
    """The URL names a revision that is no longer served."""

    status, slug, title = HTTPStatus.GONE, "gone", "The revision is no longer served"


class ContentTooLarge(Problem):
    """Too many bytes, pixels or images."""

    status, slug, title = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "content-too-large", "The request is too large"


class UnsupportedMediaType(Problem):
    """A Content-Type, or an image format, that is not supported."""

    status, slug, title = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type"


class InvalidRequest(Problem):
    """A member of the request is missing, of the wrong type or out of range."""

    status, slug, title = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", "The request is not valid"


class HeadersTooLarge(Problem):
    """The request's line and headers are too long."""

    status, slug = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large"
    title = "The headers are too large"


class TooManyRequests(Problem):
    """A queue or the memory for bodies is full, or a rate limit is reached. ``retry_after`` is in seconds."""

    status, slug, title = HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, *, retry_after: float, **extensions: Any) -> None:
        super().__init__(detail, headers=_retry_after(retry_after), **extensions)


class InternalError(Problem):
    """A bug in the service. The log has the cause under the request id."""

    def __init__(self, detail: str = "Internal error. The service log has the cause under the request id.") -> None:
        super().__init__(detail)


class Unavailable(Problem):
    """Starting, draining, or no ready worker. ``retry_after`` is in seconds."""

    status, slug, title = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "The service cannot answer now"

    def __init__(self, detail: str, *, retry_after: float = 1.0, **extensions: Any) -> None:
        super().__init__(detail, headers=_retry_after(retry_after), **extensions)


class WorkerCrashed(Problem):
    """The request crashed two workers. No Retry-After, because a retry would crash them again."""

    status, slug, title = HTTPStatus.SERVICE_UNAVAILABLE, "worker-crashed", "The request crashed the worker"


class DeadlineExceeded(Problem):
    """The deadline passed before the answer was ready."""

    status, slug, title = HTTPStatus.GATEWAY_TIMEOUT, "deadline-exceeded", "The deadline has passed"


def shutting_down() -> Unavailable:
    """The error of a request that is still running when the drain time is over."""
    return Unavailable("The service is shutting down, and this request was not finished in time.", retry_after=2.0)


def invalid_value(pointer: str, detail: str, value: Any, expected: str | None = None) -> InvalidRequest:
    """The error for one invalid value of a request; a number, string or boolean is shown."""
    shown = value if isinstance(value, int | float | str | bool) else None
    where = f" The offending value is {shown!r}." if shown is not None else ""
    allowed = f" Expected: {expected}." if expected else ""
    return InvalidRequest(
        f"{pointer}: {detail}.{where}{allowed}",
        errors=[ErrorDetail(pointer=pointer, detail=detail, value=shown, expected=expected)],
    )


def problem_response(problem: Problem, *, instance: str | None) -> Response:
    """The HTTP response of a problem; ``instance`` is the request id."""
    body = problem.to_json(instance=instance)
    return Response(body, problem.status, {"Cache-Control": "no-store", **problem.headers}, PROBLEM_MEDIA_TYPE)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
