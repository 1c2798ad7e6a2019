"""A front end: a process that answers HTTP requests, in front of the workers. The supervisor starts it; it never imports
torch.

::

    supervisor ── control ──> drain, close, reload  SIGTERM drains too; the supervisor handles SIGINT and SIGHUP
    clients ── shared listening socket ──> application ── Unix sockets ──> workers

It accepts connections when its engine is ready, or after two seconds: until then they wait in the socket's backlog, which
outlives it. If the supervisor dies, the front end drains and exits. If its engine fails for good, it exits and is replaced.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from service.api.app import create_app
from service.api.health import application_health
from service.api.state import ApiState
from service.engine.remote import RemoteLink
from service.errors import ServiceError
from service.processes.control import ControlChannel, FrontEndStart, heartbeat_interval, unpack_settings
from service.processes.http_servers import public_server
from service.processes.process import (
    SWITCH_SECONDS,
    WRONG_CONFIGURATION,
    configure_process,
    event_loop,
    unblock_signals,
)
from service.settings import Settings
from service.telemetry.log_writer import dropped_log_lines
from service.telemetry.metric_files import count_in_files

__all__: list[str] = []

# After SIGTERM and the shutdown delay: how long to wait for the command that says whether all front ends close.
_CLOSE_COMMAND_SECONDS = 2.0
_OVERDUE_SECONDS = 10.0
_ENGINE_SECONDS = 2.0


class _FrontEnd:
    """The application, its server, and the connection to the supervisor."""

    def __init__(self, start: FrontEndStart, settings: Settings, channel: ControlChannel) -> None:
        self._settings = settings
        self._channel = channel
        links = [RemoteLink(name, address) for name, address in start.workers.items()]
        app = create_app(settings, links, on_failure=self._end, engine_seconds=_ENGINE_SECONDS)
        self._state: ApiState = app.state.api
        self._server = public_server(app, socket.socket(fileno=start.listener), settings, self._state.metrics)
        self._closing = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._exit_status = 0

    async def run(self) -> int:
        """Returns the exit status when the server has stopped."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._start_draining)
        unblock_signals()
        tasks = [asyncio.create_task(self._handle_commands()), asyncio.create_task(self._send_heartbeats())]
        try:
            await self._server.run_until_stopped()
        finally:
            for task in tasks:
                task.cancel()
        return self._exit_status

    def _end(self, _: BaseException) -> None:
        """After the engine has failed for good: answers what is in progress with errors, and exits."""
        self._exit_status = 1
        self._state.is_draining = True
        self._server.stop_accepting(shared=True)

    async def _send_heartbeats(self) -> None:
        """Runs in the event loop, so that heartbeats stop if the loop hangs."""
        while True:
            self._send_status()
            await asyncio.sleep(heartbeat_interval(self._settings))

    def _send_status(self) -> None:
        health = application_health(self._state)
        status = {"state": health["status"], "reason": health["reason"], "health": health}
        status["log_lines_dropped"] = dropped_log_lines()
        self._channel.send({"status": status | {"is_accepting": self._server.started and not self._state.is_draining}})

    async def _handle_commands(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message["do"]:
                case "status":
                    self._send_status()
                case "reload":
                    self._state.keys.reload()
                case "drain":
                    self._start_draining()
                case "close":
                    self._start_draining()
                    self._closing.set()
        # The supervisor has died and cannot kill this process if it hangs.
        asyncio.get_running_loop().call_later(
            self._settings.shutdown_delay + self._settings.drain_seconds + _OVERDUE_SECONDS, os._exit, 1
        )
        self._start_draining()
        await asyncio.sleep(self._settings.shutdown_delay)
        self._closing.set()

    def _start_draining(self) -> None:
        if self._stopping is None:
            self._state.is_draining = True
            self._server.start_draining()
            self._send_status()
            self._stopping = asyncio.create_task(self._stop_accepting())

    async def _stop_accepting(self) -> None:
        try:
            async with asyncio.timeout(self._settings.shutdown_delay + _CLOSE_COMMAND_SECONDS):
                await self._closing.wait()
        except TimeoutError:
            # Only this process got SIGTERM: the other front ends go on with the same listener.
            self._server.stop_accepting(shared=True)
        else:
            self._server.stop_accepting(shared=False)


async def _serve(control: socket.socket) -> int:
    channel = await ControlChannel.open(control)
    first = await channel.receive()
    if first is None:
        return 0
    start = FrontEndStart(**first["start"])
    settings = unpack_settings(start.settings)
    configure_process(start.name, log_level=settings.log_level, log_format=settings.log_format)
    count_in_files(Path(start.metrics_folder), start.metrics_place)
    try:
        front_end = _FrontEnd(start, settings, channel)
    except (ValueError, ServiceError) as error:
        channel.send({"status": {"state": "failed", "reason": str(error), "health": None}})
        return WRONG_CONFIGURATION
    return await front_end.run()


def main() -> None:
    """Runs the front end. The argument is the number of the control socket."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    with event_loop() as runner:
        sys.exit(runner.run(_serve(socket.socket(fileno=descriptor))))


if __name__ == "__main__":
    main()
