"""``titok serve --workers inline``: everything in one process, batches in a thread of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.exposition import generate_latest

from service.api.admin import create_admin_app
from service.api.app import EngineFactory, create_app
from service.api.health import application_health
from service.api.state import ApiState
from service.engine import Engine, EngineObserver, InlineEngine, LaneLimits
from service.inference.device import ServedDevice, open_device
from service.inference.model_info import ModelInfo
from service.processes.http_servers import admin_server, public_server
from service.processes.process import SWITCH_SECONDS, event_loop, release_signals
from service.processes.state_metrics import ProcessesCollector, ServiceCollector, WorkersCollector
from service.settings import Settings

__all__ = ["inline_engine", "serve_inline"]

log = logging.getLogger(__name__)

NAME = "front end 0"


def inline_engine(settings: Settings, open_device: Callable[[Settings], ServedDevice] = open_device) -> EngineFactory:
    """An engine whose device is opened in a thread of this process."""

    def create(*, limits: LaneLimits, observer: EngineObserver, on_model_info: Callable[[ModelInfo], None]) -> Engine:
        return InlineEngine(
            lambda: open_device(settings), limits=limits, observer=observer, on_model_info=on_model_info
        )

    return create


def serve_inline(settings: Settings, public: socket.socket, admin: socket.socket) -> int:
    """Serves on both sockets until SIGTERM or SIGINT, then drains; a second one ends at once. Gives the exit status."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with event_loop() as runner:
        return runner.run(_serve(settings, public, admin))


async def _serve(settings: Settings, public: socket.socket, admin: socket.socket) -> int:
    app = create_app(settings, inline_engine(settings))
    state: ApiState = app.state.api
    exposition = _exposition(state)
    api = public_server(app, public, settings)
    operations = admin_server(create_admin_app(app.state.health, exposition), admin, settings)
    leaving = asyncio.Event()

    def stop() -> None:
        if leaving.is_set():
            log.warning("a second signal: ending at once")
            os._exit(1)
        leaving.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    release_signals()

    async def leave() -> None:
        await leaving.wait()
        state.is_draining = True
        api.start_draining()
        await asyncio.sleep(settings.shutdown_delay)
        api.stop_accepting(shared=False)

    async def serve_api() -> None:
        await api.run_until_stopped()
        operations.stop_accepting(shared=False)

    await asyncio.gather(leave(), serve_api(), operations.run_until_stopped())
    return 0


def _exposition(state: ApiState) -> Callable[[], Any]:
    def health() -> Mapping[str, Any]:
        return application_health(state)

    def workers() -> Mapping[str, bool]:
        info = state.operations.models.loaded
        return {} if info is None else {info.device: state.operations.engine.state.is_ready}

    registry = state.metrics.registry
    registry.register(ServiceCollector(health))
    registry.register(WorkersCollector(workers))
    registry.register(ProcessesCollector(lambda: {NAME: os.getpid()}))

    async def exposition() -> bytes:
        return generate_latest(registry)

    return exposition
