"""A worker: one process that owns one device and runs the batches of every front end. Run by the supervisor.

::

    supervisor ── control ──> stop                  SIGINT and SIGTERM are ignored: front ends still need it while they
    front ends ── Unix socket ──> device            drain
    lifeline: its end says that the supervisor and every front end have ended, however that came about
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import CheckpointError
from service.engine.worker import DeviceServer
from service.processes.control import WorkerStart, beat_seconds, decode_message, encode_message, unpack_settings
from service.processes.process import begin_process, limit_spinning, release_signals
from service.settings import Settings

if TYPE_CHECKING:
    from service.inference.device import ServedDevice

__all__: list[str] = []

log = logging.getLogger(__name__)

BACKLOG = 64
# Beyond the drain, for front ends that hang after the supervisor has died.
_OVERDUE_SECONDS = 10.0


class _Worker:
    """The device's server, and the threads that speak with the supervisor."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = control.makefile("rb")
        self._start = start = WorkerStart(**decode_message(self._lines.readline())["start"])
        self._settings = settings = unpack_settings(start.settings)
        self._speaking = threading.Lock()
        begin_process(start.name, log_level=settings.log_level, log_format=settings.log_format)
        self._server = DeviceServer(_listen(Path(start.address)), lambda: _open(settings, start))

    def run(self) -> int:
        """Serves until it is told to stop. Gives the exit status."""
        threading.Thread(target=self._obey, name="control", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            self._server.run()
        except Exception as error:
            expected = isinstance(error, ValueError | LookupError | CheckpointError)  # for the operator to mend
            log.error("the device cannot be opened: %s", error, exc_info=not expected)  # noqa: TRY400
            self._tell()
            return 1
        return 0

    def _tell(self) -> None:
        with self._speaking, suppress(OSError):  # the supervisor may have died
            self._control.sendall(encode_message({"status": self._server.status}))

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(beat_seconds(self._settings)):
            self._tell()

    def _obey(self) -> None:
        self._tell()
        with suppress(OSError):
            for line in self._lines:
                match decode_message(line)["do"]:
                    case "status":
                        self._tell()
                    case "stop":
                        if self._server.status["state"] == "opening":
                            os._exit(0)  # nothing is lost, and loading cannot be interrupted
                        self._server.stop()
        self._outlive_supervisor()

    def _outlive_supervisor(self) -> None:
        """Ends the process when the front ends have drained, and tidies up in the dead supervisor's place."""
        lifeline = select.poll()
        lifeline.register(self._start.lifeline, select.POLLIN)
        lifeline.poll(1000 * (self._settings.shutdown_delay + self._settings.drain_seconds + _OVERDUE_SECONDS))
        shutil.rmtree(Path(self._start.address).parent, ignore_errors=True)
        os._exit(1)


def _listen(address: Path) -> socket.socket:
    address.unlink(missing_ok=True)  # the one of the worker before
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(address))
    listener.listen(BACKLOG)
    return listener


def _open(settings: Settings, start: WorkerStart) -> ServedDevice:
    limit_spinning()
    from service.inference.device import (
        open_device,  # torch is slow to import; the supervisor hears from this process meanwhile
    )

    return open_device(settings.model_copy(update={"devices": start.device}), known_limits=start.batch_limits)


def main() -> None:
    """The argument is the number of the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    release_signals()
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    code = _Worker(socket.socket(fileno=descriptor)).run()
    logging.shutdown()
    # Not through the interpreter's own end: threads are still reading, and a device's libraries take their time.
    os._exit(code)


if __name__ == "__main__":
    main()
