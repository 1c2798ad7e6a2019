"""A front end: one process that answers HTTP, in front of the workers. Run by the supervisor; it never imports torch.

::

    supervisor ── control ──> drain, close          SIGTERM does the same; SIGINT is the supervisor's alone
    clients ── shared listening socket ──> application ── Unix sockets ──> workers

If the supervisor dies, it drains on its own and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from service.api.app import EngineFactory, create_app
from service.api.health import application_health
from service.api.state import ApiState
from service.engine import Engine, EngineObserver, LaneLimits
from service.engine.remote import RemoteEngine
from service.inference.model_info import ModelInfo
from service.processes.control import ControlChannel, FrontEndStart, beat_seconds, unpack_settings
from service.processes.http_servers import public_server
from service.processes.process import SWITCH_SECONDS, begin_process, event_loop, release_signals
from service.settings import Settings
from service.telemetry.metrics import enable_multiprocess_mode

__all__ = ["remote_engine"]

# How long a front end that was told to end by a signal waits to hear that all of them are to end.
_WORD_SECONDS = 2.0
_OVERDUE_SECONDS = 10.0


def remote_engine(workers: Mapping[str, str]) -> EngineFactory:
    """An engine whose devices are in processes of their own."""

    def create(*, limits: LaneLimits, observer: EngineObserver, on_model_info: Callable[[ModelInfo], None]) -> Engine:
        return RemoteEngine(workers, limits=limits, observer=observer, on_model_info=on_model_info)

    return create


class _FrontEnd:
    """The process's application, its server, and its ear for the supervisor."""

    def __init__(self, start: FrontEndStart, settings: Settings, channel: ControlChannel) -> None:
        self._settings = settings
        self._channel = channel
        self._app = create_app(settings, remote_engine(start.workers))
        self._state: ApiState = self._app.state.api
        self._server = public_server(self._app, socket.socket(fileno=start.listener), settings)
        self._closing = asyncio.Event()
        self._leaving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Returns when the server has ended."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._drain)
        release_signals()
        chores = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]
        try:
            await self._server.run_until_stopped()
        finally:
            for chore in chores:
                chore.cancel()

    async def _beat(self) -> None:
        """From the event loop, so that the beat stops when the loop does."""
        while True:
            self._tell()
            await asyncio.sleep(beat_seconds(self._settings))

    def _tell(self) -> None:
        health = application_health(self._state)
        self._channel.send({"status": {"state": health["status"], "reason": health["reason"], "health": health}})

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message["do"]:
                case "status":
                    self._tell()
                case "drain":
                    self._drain()
                case "close":
                    self._drain()
                    self._closing.set()
        # Nobody is left who could end this process if it hangs.
        asyncio.get_running_loop().call_later(
            self._settings.shutdown_delay + self._settings.drain_seconds + _OVERDUE_SECONDS, os._exit, 1
        )
        self._drain()
        await asyncio.sleep(self._settings.shutdown_delay)
        self._closing.set()

    def _drain(self) -> None:
        if self._leaving is None:
            self._state.is_draining = True
            self._server.start_draining()
            self._tell()
            self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(self._settings.shutdown_delay + _WORD_SECONDS):
                await self._closing.wait()
        except TimeoutError:
            # A signal to this process alone: the other front ends go on with the same listener.
            self._server.stop_accepting(shared=True)
        else:
            self._server.stop_accepting(shared=False)


async def _serve(control: socket.socket) -> None:
    channel = await ControlChannel.open(control)
    first = await channel.receive()
    if first is None:
        return
    start = FrontEndStart(**first["start"])
    settings = unpack_settings(start.settings)
    begin_process(start.name, log_level=settings.log_level, log_format=settings.log_format)
    enable_multiprocess_mode(Path(start.metrics_folder), start.metrics_place)
    await _FrontEnd(start, settings, channel).run()


def main() -> None:
    """The argument is the number of the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    with event_loop() as runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(_serve(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    main()
