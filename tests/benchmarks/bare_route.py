"""Baseline: a FastAPI route that reads a body and answers with a constant: ``python -m tests.benchmarks.bare_route FILE``.

Measures the cost of HTTP, FastAPI and reading the body. It runs on the service's HTTP server with its settings, on a
free port that it prints. The file holds the constant.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

from service.processes.http_servers import public_server
from service.processes.process import SWITCH_SECONDS, event_loop
from service.settings import Settings
from service.telemetry.metrics import Metrics


def bare_app(constant: bytes) -> FastAPI:
    """The application."""
    app = FastAPI()

    @app.post("/v1/encode")
    async def encode(request: Request) -> Response:
        await request.body()
        return Response(constant, media_type="application/json")

    return app


def main() -> None:
    """Serves until killed."""
    sys.setswitchinterval(SWITCH_SECONDS)
    app = bare_app(Path(sys.argv[1]).read_bytes())
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setblocking(False)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server = public_server(app, listener, Settings(), Metrics())
    with event_loop() as runner:
        runner.run(server.run_until_stopped())


if __name__ == "__main__":
    main()
