"""``titok serve --workers inline``: the service in one process; a thread of it runs the batches."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from service.api.admin import create_admin_app
from service.api.app import create_app
from service.api.health import application_health
from service.api.state import ApiState
from service.engine import InlineLink
from service.inference.device import open_device
from service.processes.http_servers import admin_server, public_server
from service.processes.process import SWITCH_SECONDS, event_loop, unblock_signals
from service.processes.state_metrics import (
    StateCollector,
    WorkerState,
    log_metrics,
    process_metrics,
    service_metrics,
    worker_metrics,
)
from service.settings import Settings
from service.telemetry.log_writer import drain_standard_error, dropped_log_lines

log = logging.getLogger(__name__)

NAME = "front end 0"
_WORKER_STATES: Mapping[str, WorkerState] = {"ready": "up", "starting": "starting"}


def serve_inline(settings: Settings, public: socket.socket, admin: socket.socket) -> int:
    """Serves on both sockets until SIGTERM, SIGINT or the loss of the device, then drains; a second signal ends it at once.
    Returns the exit status.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    with event_loop() as runner:
        return runner.run(_SingleProcess(settings, public, admin).run())


class _SingleProcess:
    """The application and the servers of both ports."""

    def __init__(self, settings: Settings, public: socket.socket, admin: socket.socket) -> None:
        link = InlineLink(partial(open_device, settings))
        app = create_app(settings, [link], on_failure=self._end)
        self._settings = settings
        self._state: ApiState = app.state.api
        self._exit_status = 0
        self._public = public_server(app, public, settings, self._state.metrics)
        self._admin = admin_server(create_admin_app(self._health, self._exposition), admin, settings)
        self._stopping = asyncio.Event()
        self._registry = self._state.metrics.registry
        self._registry.register(StateCollector(self._state_metrics))

    async def run(self) -> int:
        """Returns the exit status when both servers have stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._state.keys.reload)
        unblock_signals()
        await asyncio.gather(self._drain(), self._serve_public(), self._admin.run_until_stopped())
        return self._exit_status

    def _end(self, error: BaseException) -> None:
        """After the engine has failed for good, as only a new process helps."""
        log.error("the service ends: %s", error)
        self._exit_status = 1
        self._stopping.set()

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            log.warning("second signal: exiting at once")
            drain_standard_error()
            os._exit(1)
        self._stopping.set()

    async def _drain(self) -> None:
        await self._stopping.wait()
        self._state.is_draining = True
        self._public.start_draining()
        await asyncio.sleep(self._settings.shutdown_delay)
        self._public.stop_accepting(shared=False)

    async def _serve_public(self) -> None:
        await self._public.run_until_stopped()
        self._admin.stop_accepting(shared=False)

    def _state_metrics(self) -> Iterator[Metric]:
        info = self._state.operations.models.loaded
        yield from service_metrics(application_health(self._state))
        state = self._state.operations.engine.state
        device = self._settings.devices if info is None else info.device
        yield from worker_metrics({device: _WORKER_STATES.get(state.name, "down")})
        yield from process_metrics({NAME: os.getpid()})
        yield log_metrics({NAME: dropped_log_lines()})

    async def _health(self) -> dict[str, Any]:
        return application_health(self._state)

    async def _exposition(self) -> bytes:
        return generate_latest(self._registry)
