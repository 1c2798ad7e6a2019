"""Everything that can go wrong with a call, as the client raises it.

::

    TiTokError
    ├── ConnectionFailed          no whole answer came: refused, reset, or cut off on the way
    ├── UnexpectedAnswer          an answer that this API does not give: another service, or a proxy's page
    ├── DeadlineExceeded          the time of the call is up, all tries included
    │   └── ServiceDeadlineExceeded   504   the service says so itself
    └── ServiceProblem            a refusal, with its problem document (RFC 9457)
        ├── BadRequest                400   an image that cannot be decoded, or a malformed body
        ├── Unauthorized              401   no key, or an unknown one
        ├── NotFound                  404   an unknown model, class or address
        ├── RevisionMismatch          409   tokens of another tokenizer
        ├── ContentTooLarge           413   too many bytes, pixels or images
        ├── UnsupportedMediaType      415   an image format that is not taken
        ├── InvalidRequest            422   a value is missing, of the wrong type, or out of range
        ├── TooManyRequests           429   a queue is full
        ├── ServiceFailed             500   a defect of the service; ``request_id`` finds it in its log
        ├── Unavailable               503   starting, draining, or no ready worker
        └── ServiceDeadlineExceeded   504
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

__all__ = [
    "BadRequest",
    "ConnectionFailed",
    "ContentTooLarge",
    "DeadlineExceeded",
    "InvalidRequest",
    "NotFound",
    "RevisionMismatch",
    "ServiceDeadlineExceeded",
    "ServiceFailed",
    "ServiceProblem",
    "TiTokError",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "UnsupportedMediaType",
    "problem_error",
]

_WORKER_CRASHED = "urn:titok:problem:worker-crashed"


class TiTokError(Exception):
    """A call that brought no result."""

    @property
    def is_transient(self) -> bool:
        """Whether the same call may well succeed a little later."""
        return False

    @property
    def retry_after(self) -> float:
        """Seconds that the service asked to be left alone for."""
        return 0.0


class ConnectionFailed(TiTokError):
    """No whole answer came."""

    @property
    def is_transient(self) -> bool:
        """Every call of this API may be sent twice: it computes the same again."""
        return True


class UnexpectedAnswer(TiTokError):
    """An answer that this API does not give."""

    def __init__(self, message: str, *, status: int, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self._retry_after = retry_after

    @property
    def is_transient(self) -> bool:
        """What a proxy says while it finds no service behind it."""
        return self.status in (429, 502, 503, 504)

    @property
    def retry_after(self) -> float:
        """Seconds, from ``Retry-After``."""
        return self._retry_after


class DeadlineExceeded(TiTokError):
    """The time of the call is up."""


class ServiceProblem(TiTokError):
    """A refusal.

    ``document`` is the whole problem document; its members ``type``, ``title``, ``detail``, ``errors`` (each a ``pointer``
    to an offending place, with ``detail``, ``value``, ``expected``) and ``instance`` (as ``request_id``) are attributes.
    ``index`` is the place of the offending image in the list that the call was given, where one is to blame.
    """

    status: ClassVar[int] = 0

    def __init__(self, document: Mapping[str, Any], *, retry_after: float = 0.0) -> None:
        self.document = dict(document)
        self.type = str(document.get("type", "about:blank"))
        self.title = str(document.get("title", ""))
        self.detail = str(document.get("detail", "")) or self.title
        self.errors: list[dict[str, Any]] = list(document.get("errors", ()))
        self.request_id: str | None = document.get("instance")
        self.index: int | None = None
        self._retry_after = retry_after
        super().__init__(self.detail)

    @property
    def is_transient(self) -> bool:
        """Whether the same call may well succeed a little later."""
        return self.status in (429, 503) and self.type != _WORKER_CRASHED

    @property
    def retry_after(self) -> float:
        """Seconds, from ``Retry-After``."""
        return self._retry_after

    def blame(self, places: Sequence[int]) -> None:
        """Sets ``index`` from the pointer, where ``places`` are those of the request's images in the list."""
        for error in self.errors:
            place = str(error.get("pointer", "")).rpartition("/")[2]
            if place.isdigit() and int(place) < len(places):
                self.index = places[int(place)]
                self.add_note(f"image {self.index} of the list")
                return


class BadRequest(ServiceProblem):
    """An image that cannot be decoded, or a malformed body."""

    status = 400


class Unauthorized(ServiceProblem):
    """No API key, or an unknown one."""

    status = 401


class NotFound(ServiceProblem):
    """An unknown model, class or address."""

    status = 404


class RevisionMismatch(ServiceProblem):
    """Tokens of another tokenizer."""

    status = 409


class ContentTooLarge(ServiceProblem):
    """Too many bytes, pixels or images."""

    status = 413


class UnsupportedMediaType(ServiceProblem):
    """An image format that is not taken."""

    status = 415


class InvalidRequest(ServiceProblem):
    """A value is missing, of the wrong type, or out of range."""

    status = 422


class TooManyRequests(ServiceProblem):
    """A queue is full, and stayed so for all tries."""

    status = 429


class ServiceFailed(ServiceProblem):
    """A defect of the service."""

    status = 500


class Unavailable(ServiceProblem):
    """Starting, draining, or no ready worker, for all tries."""

    status = 503


class ServiceDeadlineExceeded(ServiceProblem, DeadlineExceeded):
    """The service gave up at the deadline."""

    status = 504


_BY_STATUS: Mapping[int, type[ServiceProblem]] = {
    problem.status: problem
    for problem in (
        BadRequest,
        Unauthorized,
        NotFound,
        RevisionMismatch,
        ContentTooLarge,
        UnsupportedMediaType,
        InvalidRequest,
        TooManyRequests,
        ServiceFailed,
        Unavailable,
        ServiceDeadlineExceeded,
    )
}


def problem_error(document: Mapping[str, Any], *, status: int, retry_after: float = 0.0) -> ServiceProblem:
    """The error that a problem document of a status becomes."""
    return _BY_STATUS.get(status, ServiceProblem)(document, retry_after=retry_after)
