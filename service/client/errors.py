"""Exceptions of the client.

::

    TiTokError
    ├── ConnectionFailed          no complete response: connection refused, reset or closed early
    ├── UnexpectedAnswer          a response that is not part of this API: another service, or a proxy's page
    ├── DeadlineExceeded          no response within the timeout, retries included
    │   └── ServiceDeadlineExceeded   504   the service stopped at the deadline
    └── ServiceProblem            an error response with a problem document (RFC 9457)
        ├── BadRequest                400   an image that cannot be decoded, or a malformed body
        ├── Unauthorized              401   no API key, or an unknown one
        ├── NotFound                  404   an unknown model, class or path
        ├── RevisionMismatch          409   tokens of another tokenizer
        ├── ContentTooLarge           413   too many bytes, pixels or images
        ├── UnsupportedMediaType      415   an unsupported image format
        ├── InvalidRequest            422   a value is missing, of the wrong type, or out of range
        ├── TooManyRequests           429   a queue is full
        ├── ServiceFailed             500   internal error; ``request_id`` finds it in the service's log
        ├── Unavailable               503   starting, draining, or no ready worker
        └── ServiceDeadlineExceeded   504
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

_WORKER_CRASHED = "urn:titok:problem:worker-crashed"


class TiTokError(Exception):
    """Base class of the errors of a call.

    ``is_transient`` says whether the same call may succeed later; ``retry_after`` is the service's ``Retry-After`` in
    seconds, 0 without one.
    """

    is_transient: bool = False
    retry_after: float = 0.0


class ConnectionFailed(TiTokError):
    """No complete response was received."""

    is_transient = True  # every call of this API is idempotent


class UnexpectedAnswer(TiTokError):
    """A response that is not part of this API."""

    def __init__(self, message: str, *, status: int, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.is_transient = status in (429, 502, 503, 504)  # sent by a proxy that has no service behind it


class DeadlineExceeded(TiTokError):
    """No response within the timeout."""


class ServiceProblem(TiTokError):
    """An error response of the service.

    ``document`` is the problem document; its members ``type``, ``title``, ``detail``, ``errors`` (each with ``pointer``,
    ``detail``, ``value``, ``expected``) and ``instance`` (as ``request_id``) are attributes. ``index`` is the position of
    the offending image in the list that was passed to the call, or None.
    """

    status: ClassVar[int] = 0
    _by_status: ClassVar[dict[int, type[ServiceProblem]]] = {}

    def __init_subclass__(cls, *, status: int | None = None) -> None:
        if status is not None:
            cls.status = status
            cls._by_status[status] = cls

    def __init__(self, document: Mapping[str, Any], *, retry_after: float = 0.0) -> None:
        self.document = dict(document)
        self.type = str(document.get("type", "about:blank"))
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", "")) or self.title
        self.errors: list[dict[str, Any]] = list(document.get("errors", ()))
        self.request_id: str | None = document.get("instance")
        self.index: int | None = None
        self.retry_after = retry_after
        self.is_transient = self.status in (429, 503) and self.type != _WORKER_CRASHED
        super().__init__(self.detail)

    def __str__(self) -> str:
        return self.detail if self.index is None else f"{self.detail} (item {self.index} of the list)"

    def set_index(self, positions: Sequence[int]) -> None:
        """Sets ``index`` from the pointer; ``positions`` are those of the request's images in the list."""
        for error in self.errors:
            image = str(error.get("pointer", "")).rpartition("/")[2]
            if image.isdigit() and int(image) < len(positions):
                self.index = positions[int(image)]
                return


class BadRequest(ServiceProblem, status=400):
    """An image that cannot be decoded, or a malformed body."""


class Unauthorized(ServiceProblem, status=401):
    """No API key, or an unknown one."""


class NotFound(ServiceProblem, status=404):
    """An unknown model, class or path."""


class RevisionMismatch(ServiceProblem, status=409):
    """Tokens of another tokenizer."""


class ContentTooLarge(ServiceProblem, status=413):
    """Too many bytes, pixels or images."""


class UnsupportedMediaType(ServiceProblem, status=415):
    """An unsupported image format."""


class InvalidRequest(ServiceProblem, status=422):
    """A value is missing, of the wrong type, or out of range."""


class TooManyRequests(ServiceProblem, status=429):
    """A queue was full in every attempt."""


class ServiceFailed(ServiceProblem, status=500):
    """An internal error of the service."""


class Unavailable(ServiceProblem, status=503):
    """The service was starting, draining, or had no ready worker in every attempt."""


class ServiceDeadlineExceeded(ServiceProblem, DeadlineExceeded, status=504):
    """The service stopped at the deadline."""


def problem_error(document: Mapping[str, Any], *, status: int, retry_after: float = 0.0) -> ServiceProblem:
    """The exception for a problem document and its status."""
    return ServiceProblem._by_status.get(status, ServiceProblem)(document, retry_after=retry_after)
