"""``titok health`` asks where the settings say, and its exit code is the answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.cli.options import CommandError

Ask = Callable[..., Result]


@contextmanager
def answering(host: str, body: bytes, status: int = 200) -> Iterator[int]:
    """The port of a server that gives this answer to ``/readyz``."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with Server((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def ready(status: str = "ready", reason: str | None = None) -> bytes:
    return json.dumps({"status": status, "reason": reason}).encode()


def ask(**settings: object) -> Result:
    environment = {f"TITOK_{name.upper()}": str(value) for name, value in settings.items()}
    # A proxy is for the world outside.
    return CliRunner().invoke(app, ["health"], env={**environment, "http_proxy": "http://192.0.2.1:3128"})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])  # noqa: S104
def test_it_asks_the_admin_address_of_the_settings(host: str) -> None:
    listening = "127.0.0.1" if host == "localhost" else host
    with answering(listening, ready()) as port:
        asked = ask(host="192.0.2.1", admin_host=host, admin_port=port)
    assert (asked.exit_code, asked.output) == (0, "ready\n")


def test_a_service_that_is_not_ready_gives_the_reason() -> None:
    with answering("127.0.0.1", ready("starting", "models are being loaded"), 503) as port:
        asked = ask(admin_port=port)
    assert (asked.exit_code, asked.output) == (1, "starting: models are being loaded\n")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_another_program_on_the_port_is_no_service(body: bytes) -> None:
    with answering("127.0.0.1", body) as port:
        asked = ask(admin_port=port)
    assert isinstance(asked.exception, CommandError)
    assert f"TITOK_ADMIN_PORT={port}" in str(asked.exception)


def test_nothing_on_the_port_and_a_port_that_the_system_chooses_are_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "Connection refused" in str(ask(admin_port=port).exception)
    assert "TITOK_ADMIN_PORT is 0" in str(ask(admin_port=0).exception)
    assert "admin_port" in str(ask(admin_port="none").exception)
