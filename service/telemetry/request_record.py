"""The record of one request, from which metrics, access log and traces are made when it has ended."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import Message, Scope

from service.telemetry.timings import RequestTimings

OutcomeName = Literal["ok", "refused", "client_gone", "failed"]
CLIENT_GONE = 499  # nginx's status for a client that closed the connection
UNMATCHED = "unmatched"  # the route of requests that no route has answered
PROBES = ("/livez", "/readyz", "/healthz")
_OPERATIONS = ("encode", "decode", "generate", "reconstruct", "mix", "codes", "images", "models")


def new_request_id() -> str:
    """A random id."""
    return f"{random.getrandbits(128):032x}"


@dataclass(slots=True)
class RequestRecord:
    """``traceparent``: the request's header, or empty. ``path``: without the prefix that a proxy has removed. ``status``: 0
    until the response begins. ``is_complete``: whether all of the response was sent. ``bytes_in``, ``bytes_out``: lengths of
    the bodies. ``seconds``: duration of the request.
    """

    scope: Scope
    request_id: str
    timings: RequestTimings
    traceparent: str = ""
    trace_id: str | None = field(init=False)
    path: str = field(init=False)
    operation: str = field(init=False)
    status: int = 0
    is_complete: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.trace_id = self.traceparent[3:35] or None
        # By path: the route is not known before routing, and requests are counted by operation from their beginning.
        self.path = self.scope["path"].removeprefix(self.scope.get("root_path", ""))
        version, _, rest = self.path.removeprefix("/").partition("/")
        operation = rest.partition("/")[0]
        self.operation = operation if version == "v1" and operation in _OPERATIONS else "other"

    def count_received(self, message: Message) -> None:
        """Counts bytes of the request's body."""
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))

    def count_sent(self, message: Message) -> None:
        """Records status, bytes and end of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)

    @property
    def route(self) -> str:
        """The path pattern of the route. All paths without a route share one value, which bounds the number of series in
        Prometheus.
        """
        return getattr(self.scope.get("route"), "path", UNMATCHED)

    @property
    def method(self) -> str:
        """GET, HEAD, POST or ``other``."""
        method: str = self.scope["method"]
        return method if method in ("GET", "HEAD", "POST") else "other"

    @property
    def key_name(self) -> str | None:
        """The name of the caller's API key."""
        name: str | None = self.scope["state"].get("key_name")
        return name

    @property
    def code(self) -> int:
        """The status, or 499 if the client left before there was one."""
        return self.status or CLIENT_GONE

    @property
    def outcome(self) -> OutcomeName:
        """How the request ended. ``has_failed`` in its state marks an answer that failed after its status was sent."""
        if self.scope["state"].get("has_failed", False):
            return "failed"
        if self.code == CLIENT_GONE or not self.is_complete:
            return "client_gone"
        if self.code >= 500:
            return "failed"
        return "refused" if self.code >= 400 else "ok"
