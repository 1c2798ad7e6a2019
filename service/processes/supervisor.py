"""The supervisor: owns the ports, starts and restarts front ends and workers, and drains the service.

::

    titok: supervisor ─┬─ titok: front end 0 ──┐   all accept on one listening socket
                       ├─ titok: front end 1 ──┼── Unix sockets ──┐
                       ├─ titok: worker cuda:0 ┘ <────────────────┤
                       └─ titok: worker cuda:1 <──────────────────┘

    SIGTERM    not ready, responses close their connections, for shutdown_delay seconds
               listener closed, its backlog served; front ends finish within drain_seconds and exit
               workers stop; exit 0
    second one every process is killed; exit 1
    SIGHUP     front ends read the file of API keys again

A child that cannot start as it is configured ends the service: every process is killed; exit 1.

It imports neither torch nor the public API, and does nothing that blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from service.http.sockets import refuse_handshakes
from service.processes.child import Child
from service.processes.control import FrontEndStart, WorkerStart, pack_settings
from service.processes.device_names import device_names
from service.processes.health import service_health
from service.processes.process import unblock_signals
from service.processes.state_metrics import (
    StateCollector,
    gpu_metrics,
    log_metrics,
    padding_metrics,
    process_metrics,
    restart_metrics,
    service_metrics,
    worker_metrics,
    worker_state,
)
from service.settings import Settings
from service.telemetry.log_writer import dropped_log_lines
from service.telemetry.metric_files import clear_gauges, multiprocess_registry

if TYPE_CHECKING:
    from service.http.server import HttpServer

log = logging.getLogger(__name__)

FRONT_ENDS_PER_GPU = 2
# A socket's path may have 107 bytes on Linux, 103 elsewhere.
_FOLDER_BYTES = 85
_METRICS = "metrics"
# Added to the drain: for a front end to exit after it, and for a worker to finish its batch.
_OVERDUE_SECONDS = 5.0
_WORKER_STOP_SECONDS = 10.0


def supervise(settings: Settings, public: socket.socket, admin: socket.socket) -> int:
    """Serves on both sockets until SIGTERM or SIGINT. Returns the exit status."""
    try:
        folder = _runtime_folder()
    except OSError as error:
        log.error("no folder for sockets and metrics can be created (TMPDIR): %s", error)  # noqa: TRY400  no traceback needed
        return 1
    try:
        return asyncio.run(_Supervisor(settings, public, admin, folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runtime_folder() -> Path:
    """A new folder in that of temporary files, or in /tmp if a socket's path there would be too long. Raises ``OSError``."""
    usual = tempfile.gettempdir()
    is_short = len(os.fsencode(usual)) + len("/titok-12345678") <= _FOLDER_BYTES
    folder = Path(tempfile.mkdtemp(prefix="titok-", dir=usual if is_short else "/tmp"))  # noqa: S108  a folder of its own
    (folder / _METRICS).mkdir()
    return folder


class _Supervisor:
    """``folder``, readable by its owner only, holds the sockets of the workers and the metrics of the front ends."""

    def __init__(self, settings: Settings, public: socket.socket, admin: socket.socket, folder: Path) -> None:
        self._settings = settings
        self._public = public
        self._admin = admin
        self._folder = folder
        self._metrics_folder = folder / _METRICS
        self._front_ends: list[Child] = []
        self._workers: dict[str, Child] = {}  # by device
        self._tasks: dict[Child, asyncio.Task[None]] = {}
        self._stopping, self._killing = asyncio.Event(), asyncio.Event()
        self._metrics = multiprocess_registry(self._metrics_folder)
        self._metrics.register(StateCollector(self._state_metrics))

    async def run(self) -> int:
        """Runs the service. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        unblock_signals()
        service, killing = asyncio.create_task(self._serve()), asyncio.create_task(self._killing.wait())
        await asyncio.wait((service, killing), return_when=asyncio.FIRST_COMPLETED)
        if service.done():
            return service.result()
        service.cancel()  # which kills every child
        await asyncio.wait((service,))
        return 1

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            log.warning("second signal: killing all processes")
            self._killing.set()
        self._stopping.set()

    def _reload(self) -> None:
        log.info("SIGHUP: reading the API keys again")
        for front_end in self._front_ends:
            front_end.send("reload")

    async def _serve(self) -> int:
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(self._start(group))
            admin = await asyncio.to_thread(self._admin_server)
            group.create_task(admin.run_until_stopped())
            await self._stopping.wait()
            starting.cancel()
            all_exited = await self._drain()
            admin.stop_accepting(shared=False)
        return 0 if all_exited else 1

    def _admin_server(self) -> HttpServer:
        # The web framework takes a third of a second to import, and the workers are started before.
        from service.api.admin import create_admin_app
        from service.processes.http_servers import admin_server

        return admin_server(create_admin_app(self._health, self._exposition), self._admin, self._settings)

    # --- child processes ---------------------------------------------------------------------------------------------

    async def _start(self, group: asyncio.TaskGroup) -> None:
        devices = await device_names(self._settings.devices)
        gpus = [device for device in devices if device != "cpu"]
        front_ends = self._settings.front_ends or FRONT_ENDS_PER_GPU * len(gpus) or 1
        addresses = {device: str(self._folder / f"{device.replace(':', '-')}.sock") for device in devices}
        # The supervisor and the front ends hold the writing end: when all of them have exited, the workers exit.
        liveness_pipe, writing_end = os.pipe()
        for device, address in addresses.items():
            self._workers[device] = self._worker(device, address, liveness_pipe)
        for index in range(front_ends):
            self._front_ends.append(self._front_end(index, front_ends, addresses, writing_end))
        for child in (*self._workers.values(), *self._front_ends):
            self._tasks[child] = group.create_task(self._keep_running(child))

    async def _keep_running(self, child: Child) -> None:
        await child.run()
        if child.configuration_error is not None:
            log.error("%s: %s", child.name, child.configuration_error)
            self._killing.set()

    def _worker(self, device: str, address: str, liveness_pipe: int) -> Child:
        name = f"worker {device}"
        start = WorkerStart(
            name=name,
            settings=pack_settings(self._settings),
            device=device,
            address=address,
            liveness_pipe=liveness_pipe,
        )
        return Child(
            name,
            "service.processes.worker",
            start=asdict(start),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            batch_timeout=self._settings.batch_timeout,
            pass_fds=(liveness_pipe,),
            carry_over="measured_limits",
        )

    def _front_end(self, index: int, count: int, workers: Mapping[str, str], liveness_pipe: int) -> Child:
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
            pass_fds=(self._public.fileno(), liveness_pipe),
            after_death=lambda: clear_gauges(self._metrics_folder, place),
        )

    async def _drain(self) -> bool:
        """Stops all children. Returns whether none had to be killed."""
        log.info("shutting down: accepting requests for %g s more", self._settings.shutdown_delay)
        for front_end in self._front_ends:
            front_end.send("drain")
        await asyncio.sleep(self._settings.shutdown_delay)
        # From here on the backlog only shrinks; the port is closed when the last front end closes its descriptor.
        refuse_handshakes(self._public)
        self._public.close()
        all_exited = await self._end(self._front_ends, "close", self._settings.drain_seconds + _OVERDUE_SECONDS)
        return await self._end(self._workers.values(), "stop", _WORKER_STOP_SECONDS) and all_exited

    async def _end(self, children: Iterable[Child], command: Literal["close", "stop"], seconds: float) -> bool:
        running = {self._tasks[child]: child for child in children}
        for child in running.values():
            child.stop(command)
        late = (await asyncio.wait(running, timeout=seconds))[1] if running else set()
        for task in late:
            log.error("%s did not exit in time and is killed", running[task].name)
            running[task].kill()
        if late:
            await asyncio.wait(late)
        return not late

    # --- health and metrics ------------------------------------------------------------------------------------------

    def _state_metrics(self) -> Iterator[Metric]:
        statuses = {device: worker.status for device, worker in self._workers.items()}
        yield from service_metrics(self._health_document())
        yield from worker_metrics({device: worker_state(worker) for device, worker in self._workers.items()})
        yield from restart_metrics(self._front_ends, self._workers)
        yield from padding_metrics(statuses)
        yield from gpu_metrics(statuses)
        yield from process_metrics({"supervisor": os.getpid()} | {child.name: child.pid for child in self._tasks})
        dropped = {child.name: child.status.get("log_lines_dropped", 0) for child in self._tasks}
        yield log_metrics({"supervisor": dropped_log_lines()} | dropped)

    def _health_document(self) -> dict[str, Any]:
        return service_health(self._front_ends, self._workers, draining=self._stopping.is_set())

    async def _health(self) -> dict[str, Any]:
        await asyncio.gather(*(child.fresh_status() for child in self._tasks))
        return self._health_document()

    async def _exposition(self) -> bytes:
        await asyncio.gather(*(child.fresh_status() for child in self._tasks))
        return generate_latest(self._metrics)
