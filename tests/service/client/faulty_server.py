"""An HTTP server with scripted faults."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler"], None]


@dataclass
class Received:
    """A received request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class FaultyServer:
    """Sends the n-th reply to the n-th request, and the last reply to later ones."""

    url: str = ""
    replies: list[Reply] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_reply(self, received: Received) -> Reply:
        with self.lock:
            self.received.append(received)
            return self.replies[min(len(self.received), len(self.replies)) - 1]


class Handler(BaseHTTPRequestHandler):
    """Passes each request to the next reply of its server."""

    protocol_version = "HTTP/1.1"
    script: FaultyServer
    seen: Received

    def setup(self) -> None:
        super().setup()
        with self.script.lock:
            self.script.connections += 1

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Received(self.command, self.path, headers, self.rfile.read(length), time.monotonic())
        self.script.next_reply(self.seen)(self)

    do_GET = do_POST  # noqa: N815  the names that the base class looks for

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


def answer(document: Any, *, status: int = 200, content_type: str = "application/json", **headers: str) -> Reply:
    """A complete JSON response; in header names _ stands for -."""

    def reply(handler: Handler) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def problem(status: int, slug: str, **headers: str) -> Reply:
    document = {"type": f"urn:titok:problem:{slug}", "title": slug, "status": status, "detail": f"it is {slug}"}
    return answer({**document, "instance": "id-1"}, status=status, content_type="application/problem+json", **headers)


def reset(handler: Handler) -> None:
    """Resets the connection instead of responding."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut(body: bytes, *, content_type: str = "application/json") -> Reply:
    """A response that ends early."""

    def reply(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body) + 100))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return reply


def silence(handler: Handler) -> None:
    """No response; ends when the client disconnects."""
    handler.connection.recv(1)
    handler.close_connection = True


def trickle(handler: Handler) -> None:
    """An endless response, byte by byte; ends when the client disconnects."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.connection.settimeout(0.01)
    while True:
        try:
            handler.wfile.write(b" ")
            if handler.connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    handler.close_connection = True


class QuietServer(ThreadingHTTPServer):
    """Does not log clients that disconnect."""

    def handle_error(self, *_: Any) -> None:
        """Logs nothing."""


@contextmanager
def faulty_server(*replies: Reply) -> Iterator[FaultyServer]:
    """Runs a server on a free port; yields it with the requests it received."""
    script = FaultyServer(replies=list(replies))
    server = QuietServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
