"""The supervisor: owns the ports, the front ends and the workers, restarts what dies, and drains the service.

::

    titok: supervisor ─┬─ titok: front end 0 ──┐   all accept on one listening socket
                       ├─ titok: front end 1 ──┼── Unix sockets ──┐
                       ├─ titok: worker cuda:0 ┘ <────────────────┤
                       └─ titok: worker cuda:1 <──────────────────┘

    SIGTERM    readiness down, answers end their connections, for shutdown_delay seconds
               listener closed, its backlog served; front ends finish within drain_seconds and exit
               workers stop; exit 0
    again      every process is killed; exit 1

It imports neither torch nor the API, and does nothing that could keep it from listening to its children.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from prometheus_client.exposition import generate_latest

from service.api.admin import create_admin_app
from service.http.sockets import refuse_handshakes
from service.processes.child import Child
from service.processes.control import FrontEndStart, WorkerStart, pack_settings
from service.processes.device_names import device_names
from service.processes.health import service_health
from service.processes.http_servers import admin_server
from service.processes.process import release_signals
from service.processes.state_metrics import (
    GpusCollector,
    PaddingCollector,
    ProcessesCollector,
    RestartsCollector,
    ServiceCollector,
    WorkersCollector,
)
from service.settings import Settings
from service.telemetry.metrics import clear_gauges, multiprocess_registry

__all__ = ["supervise"]

log = logging.getLogger(__name__)

FRONT_ENDS_PER_GPU = 2
# A socket's path may have 107 bytes on Linux, 103 elsewhere.
_FOLDER_BYTES = 85
# Beyond what they were given: for a front end to leave after its drain, for a worker to finish its batch.
_OVERDUE_SECONDS = 5.0
_WORKER_STOP_SECONDS = 10.0


def supervise(settings: Settings, public: socket.socket, admin: socket.socket) -> int:
    """Serves on both sockets until SIGTERM or SIGINT. Gives the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="titok-"))
    try:
        if len(os.fsencode(folder)) > _FOLDER_BYTES:
            log.error("the path %s is too long for sockets; set TMPDIR to a shorter one", folder)
            return 1
        return asyncio.run(_Supervisor(settings, public, admin, folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    """``folder`` is for its owner alone: the workers' sockets, the front ends' counters."""

    def __init__(self, settings: Settings, public: socket.socket, admin: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._public = public
        self._admin = admin_server(create_admin_app(self._health, self._exposition), admin, settings)
        self._folder = folder
        self._metrics_folder = folder / "metrics"
        self._metrics_folder.mkdir()
        self._front_ends: list[Child] = []
        self._workers: dict[str, Child] = {}  # by device
        self._lives: dict[Child, asyncio.Task[None]] = {}
        self._leaving, self._at_once = asyncio.Event(), asyncio.Event()
        self._metrics = multiprocess_registry(self._metrics_folder)
        for collector in (
            ServiceCollector(self._document),
            WorkersCollector(lambda: {device: worker.state == "ready" for device, worker in self._workers.items()}),
            RestartsCollector(self._front_ends, self._workers),
            PaddingCollector(lambda: {device: worker.status for device, worker in self._workers.items()}),
            GpusCollector(self._workers),
            ProcessesCollector(lambda: {"supervisor": os.getpid()} | {child.name: child.pid for child in self._lives}),
        ):
            self._metrics.register(collector)

    async def run(self) -> int:
        """Gives the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        release_signals()
        service, impatience = asyncio.create_task(self._serve()), asyncio.create_task(self._at_once.wait())
        await asyncio.wait((service, impatience), return_when=asyncio.FIRST_COMPLETED)
        if service.done():
            return service.result()
        log.warning("a second signal: ending at once")
        service.cancel()  # which kills every child
        await asyncio.wait((service,))
        return 1

    def _on_signal(self) -> None:
        (self._at_once if self._leaving.is_set() else self._leaving).set()

    async def _serve(self) -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._admin.run_until_stopped())
            starting = group.create_task(self._start(group))
            await self._leaving.wait()
            starting.cancel()
            in_order = await self._drain()
            self._admin.stop_accepting(shared=False)
        return 0 if in_order else 1

    # --- the children ------------------------------------------------------------------------------------------------

    async def _start(self, group: asyncio.TaskGroup) -> None:
        devices = await device_names(self._settings.devices)
        gpus = [device for device in devices if device != "cpu"]
        front_ends = self._settings.front_ends or FRONT_ENDS_PER_GPU * len(gpus) or 1
        addresses = {device: str(self._folder / f"{device.replace(':', '-')}.sock") for device in devices}
        # Its writing end is held here and by front ends: when it closes, nobody needs the workers any more.
        lifeline, held = os.pipe()
        for device, address in addresses.items():
            self._workers[device] = self._worker(device, address, lifeline)
        for index in range(front_ends):
            self._front_ends.append(self._front_end(index, front_ends, addresses, held))
        for child in (*self._workers.values(), *self._front_ends):
            self._lives[child] = group.create_task(child.run())

    def _worker(self, device: str, address: str, lifeline: int) -> Child:
        name = f"worker {device}"
        start = WorkerStart(
            name=name, settings=pack_settings(self._settings), device=device, address=address, lifeline=lifeline
        )
        return Child(
            name,
            "service.processes.worker",
            start=asdict(start),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            batch_timeout=self._settings.batch_timeout,
            pass_fds=(lifeline,),
            remember="batch_limits",
        )

    def _front_end(self, index: int, count: int, workers: Mapping[str, str], lifeline: int) -> Child:
        name, place = f"front end {index}", f"front-end-{index}"
        threads = self._settings.decode_threads or max(1, self._settings.image_threads // count)
        start = FrontEndStart(
            name=name,
            settings=pack_settings(self._settings.model_copy(update={"decode_threads": threads})),
            listener=self._public.fileno(),
            workers=workers,
            metrics_folder=str(self._metrics_folder),
            metrics_place=place,
        )
        return Child(
            name,
            "service.processes.front_end",
            start=asdict(start),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            batch_timeout=self._settings.batch_timeout,
            pass_fds=(self._public.fileno(), lifeline),
            after_death=lambda: clear_gauges(self._metrics_folder, place),
        )

    async def _drain(self) -> bool:
        """Whether every process ended by itself."""
        log.info("shutting down: requests are taken for %g s more", self._settings.shutdown_delay)
        for front_end in self._front_ends:
            front_end.send("drain")
        await asyncio.sleep(self._settings.shutdown_delay)
        # From here on the backlog only shrinks; with its last holder among the front ends the listener is gone.
        refuse_handshakes(self._public)
        self._public.close()
        in_order = await self._end(self._front_ends, "close", self._settings.drain_seconds + _OVERDUE_SECONDS)
        return await self._end(self._workers.values(), "stop", _WORKER_STOP_SECONDS) and in_order

    async def _end(self, children: Iterable[Child], command: Literal["close", "stop"], seconds: float) -> bool:
        lives = {self._lives[child]: child for child in children}
        for child in lives.values():
            child.leave(command)
        late = (await asyncio.wait(lives, timeout=seconds))[1] if lives else set()
        for life in late:
            log.error("%s does not end, and is killed", lives[life].name)
            lives[life].kill()
        if late:
            await asyncio.wait(late)
        return not late

    # --- what is told of them ----------------------------------------------------------------------------------------

    def _document(self) -> dict[str, Any]:
        return service_health(self._front_ends, self._workers, draining=self._leaving.is_set())

    async def _health(self) -> dict[str, Any]:
        await asyncio.gather(*(child.fresh_status() for child in self._lives))
        return self._document()

    async def _exposition(self) -> bytes:
        await asyncio.gather(*(child.fresh_status() for child in self._lives))
        return generate_latest(self._metrics)
