"""Problem documents (RFC 9457): every HTTP error of the service.

A ``ProblemType`` is called to make a ``Problem``, which is raised: ``raise NotFound("There is nothing here.")``. A message
says what was wrong, what was expected and, where it helps, what to do. ``errors`` lists the offending values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from service.errors import ErrorDetail
from service.http.refusals import PacedRefusal

PROBLEM_MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An HTTP error with its problem document. ``extensions`` are further members of the document."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        errors: Sequence[ErrorDetail],
        headers: Mapping[str, str],
        extensions: Mapping[str, Any],
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers)
        self.extensions = dict(extensions)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.kind.status

    def document(self, *, instance: str | None = None) -> dict[str, Any]:
        """The problem document; ``instance`` names the request (its id)."""
        document: dict[str, Any] = {
            "type": f"urn:titok:problem:{self.kind.slug}",
            "title": self.kind.title,
            "status": self.status,
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


@dataclass(frozen=True)
class ProblemType:
    """A type of problem; ``detail`` is that of a problem without one of its own."""

    status: int
    slug: str
    title: str
    detail: str = ""

    def __call__(
        self,
        detail: str = "",
        *,
        errors: Sequence[ErrorDetail] = (),
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        **extensions: Any,
    ) -> Problem:
        """A problem of this type. ``retry_after`` is in seconds."""
        sent = dict(headers or {})
        if retry_after is not None:
            sent["Retry-After"] = str(max(1, math.ceil(retry_after)))
        return Problem(self, detail or self.detail, errors=errors, headers=sent, extensions=extensions)


UndecodableImage = ProblemType(400, "undecodable-image", "The image cannot be decoded")
MalformedBody = ProblemType(400, "malformed-body", "The request body is malformed")
MalformedRequest = ProblemType(400, "malformed-request", "The request is not HTTP")
Unauthorized = ProblemType(401, "unauthorized", "An API key is required")
Forbidden = ProblemType(403, "forbidden", "The API key does not have the role")
NotFound = ProblemType(404, "not-found", "Not found")
UnknownModel = ProblemType(404, "unknown-model", "Unknown model")
UnknownClass = ProblemType(404, "unknown-class", "Unknown class")
MethodNotAllowed = ProblemType(405, "method-not-allowed", "Method not allowed")
NotAcceptable = ProblemType(406, "not-acceptable", "No acceptable media type")
RequestTimeout = ProblemType(408, "request-timeout", "The request took too long to arrive")
RevisionMismatch = ProblemType(409, "revision-mismatch", "The tokens belong to another tokenizer")
Gone = ProblemType(410, "gone", "The revision is no longer served")
ContentTooLarge = ProblemType(413, "content-too-large", "The request is too large")  # bytes, pixels or images
UnsupportedMediaType = ProblemType(415, "unsupported-media-type", "Unsupported media type")
InvalidRequest = ProblemType(422, "invalid-request", "The request is not valid")
TooManyRequests = ProblemType(429, "too-many-requests", "Too many requests")
HeadersTooLarge = ProblemType(431, "headers-too-large", "The headers are too large")
InternalError = ProblemType(
    500,
    "internal-error",
    "Internal error",
    detail="Internal error. The service log has the cause under the request id.",
)
Unavailable = ProblemType(503, "unavailable", "The service cannot answer now")
WorkerCrashed = ProblemType(503, "worker-crashed", "The request crashed the worker")  # a retry would crash another
DeadlineExceeded = ProblemType(504, "deadline-exceeded", "The deadline has passed")


def shutting_down() -> Problem:
    """The error of a request that is still running when the drain time is over."""
    return Unavailable("The service is shutting down, and this request was not finished in time.", retry_after=2.0)


def invalid_value(pointer: str, detail: str, value: Any, expected: str | None = None) -> Problem:
    """The error for one invalid value of a request; a number, string or boolean is shown."""
    shown = value if isinstance(value, int | float | str | bool) else None
    where = f" The offending value is {shown!r}." if shown is not None else ""
    allowed = f" Expected: {expected}." if expected else ""
    return InvalidRequest(
        f"{pointer}: {detail}.{where}{allowed}",
        errors=[ErrorDetail(pointer=pointer, detail=detail, value=shown, expected=expected)],
    )


def problem_response(problem: Problem, *, instance: str | None) -> Response:
    """The HTTP response of a problem, paced if it is a 429; ``instance`` is the request id."""
    body = problem.to_json(instance=instance)
    response = PacedRefusal if problem.kind is TooManyRequests else Response
    return response(body, problem.status, {"Cache-Control": "no-store", **problem.headers}, PROBLEM_MEDIA_TYPE)
