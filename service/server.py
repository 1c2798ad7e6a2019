"""Runs the applications: one process, one event loop, the API on one port and the operator's routes on another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

import setproctitle
import uvicorn

from service.app import create_admin_app, create_app
from service.settings import Settings
from service.version import VERSION

__all__ = ["serve"]

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections not yet accepted, as uvicorn's own default


class _Server(uvicorn.Server):
    """A server that leaves signals to ``serve``, which owns two of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then drains. Returns the exit status."""
    setproctitle.setproctitle("titok: front end 0")
    # A short switch interval keeps the event loop responsive beside the threads that encode images.
    sys.setswitchinterval(0.0005)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    changed = [f"TITOK_{name.upper()}={getattr(settings, name)}" for name in sorted(settings.model_fields_set)]
    for name in sorted(os.environ):
        if name.startswith("TITOK_") and name.removeprefix("TITOK_").lower() not in Settings.model_fields:
            log.warning("%s is no setting of this version, and does nothing (docs/configuration.md)", name)
    log.info("titok-service %s, %s", VERSION, ", ".join(changed) if changed else "every setting at its default")
    with uvloop_runner() as runner:
        return runner.run(_serve(settings))


def uvloop_runner() -> asyncio.Runner:
    """An event loop on uvloop where the platform has it."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _serve(settings: Settings) -> int:
    try:
        public, admin = _listen(settings.host, settings.port), _listen(settings.host, settings.admin_port)
    except OSError as error:
        log.error("cannot listen: %s", error)  # noqa: TRY400  the message is all there is to say
        return 1
    app = create_app(settings)
    servers = [
        _Server(_config(app, settings, lifespan="on")),
        _Server(_config(create_admin_app(app), settings, lifespan="off")),
    ]

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    address = _url(public, settings.host)
    print(f"TiTok is at {address}  (API: {address}/docs, metrics: {_url(admin, settings.host)}/metrics)", flush=True)
    await asyncio.gather(servers[0].serve([public]), servers[1].serve([admin]))
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that already listens, so that whoever reads the printed address can connect at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port}: {error.strerror}") from None
    return listener


def _url(listener: socket.socket, host: str) -> str:
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{listener.getsockname()[1]}"


def _config(app: object, settings: Settings, *, lifespan: str) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan=lifespan,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 1,
    )
