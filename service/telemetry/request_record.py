"""One request, as metrics, access lines and traces are told of it when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from starlette.types import Message, Scope

from service.telemetry.timings import RequestTimings

__all__ = ["CLIENT_GONE", "OutcomeName", "RequestRecord"]

OutcomeName = Literal["ok", "refused", "client_gone", "failed"]
CLIENT_GONE = 499  # as nginx counts it
_OPERATIONS = ("encode", "decode", "generate", "reconstruct", "mix", "codes", "images", "models")


@dataclass(slots=True)
class RequestRecord:
    """``operation`` is what its path asks for, as one of few words: the route is not known before it is taken. ``status`` is
    0 until an answer begins, ``is_complete`` says that its end was sent, ``seconds`` how long it all took. ``bytes_in`` and
    ``bytes_out`` are those of bodies.
    """

    scope: Scope
    request_id: str
    timings: RequestTimings
    trace_id: str | None = None
    status: int = 0
    is_complete: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    operation: str = field(init=False)

    def __post_init__(self) -> None:
        version, _, rest = self.scope["path"].removeprefix("/").partition("/")
        operation = rest.partition("/")[0]
        self.operation = operation if version == "v1" and operation in _OPERATIONS else "other"

    def note_received(self, message: Message) -> None:
        """Counts what has come."""
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))

    def note_sent(self, message: Message) -> None:
        """Counts what goes out."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)

    @property
    def route(self) -> str:
        """The pattern of its path. Paths that match no route share one, so that a scanner cannot fill the memory of
        Prometheus.
        """
        return getattr(self.scope.get("route"), "path", "unmatched")

    @property
    def method(self) -> str:
        """Its method, as one of few words."""
        method: str = self.scope["method"]
        return method if method in ("GET", "HEAD", "POST") else "other"

    @property
    def key_name(self) -> str | None:
        """The name of the caller's API key, where keys have names."""
        name: str | None = self.scope["state"].get("key_name")
        return name

    @property
    def code(self) -> int:
        """Its status, or that of a client who was gone before there was one."""
        return self.status or CLIENT_GONE

    @property
    def outcome(self) -> OutcomeName:
        """How it ended; ``has_failed`` in its state says it of an answer whose status was sent before it failed."""
        if self.scope["state"].get("has_failed", False):
            return "failed"
        if self.code == CLIENT_GONE or not self.is_complete:
            return "client_gone"
        if self.code >= 500:
            return "failed"
        return "refused" if self.code >= 400 else "ok"
