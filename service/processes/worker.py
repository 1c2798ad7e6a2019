"""A worker: a process that owns one device and runs the batches of all front ends. The supervisor starts it.

::

    supervisor ── control ──> stop                  SIGINT and SIGTERM are ignored: front ends need the worker while they
    front ends ── Unix socket ──> device            drain
    liveness pipe: end of file when the supervisor and all front ends have exited, for whatever reason
"""

from __future__ import annotations

import gc
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

from service.engine.protocol import ConfigurationError, DeviceLost
from service.engine.worker import DeviceServer
from service.processes.control import WorkerStart, decode_message, encode_message, heartbeat_interval, unpack_settings
from service.processes.process import WRONG_CONFIGURATION, configure_process, limit_spinning, unblock_signals
from service.settings import Settings
from service.telemetry.log_writer import drain_standard_error, dropped_log_lines

if TYPE_CHECKING:
    from service.inference.device import ServedDevice

__all__: list[str] = []

log = logging.getLogger(__name__)

BACKLOG = 64
# After the drain, for front ends that hang after the supervisor has died.
_OVERDUE_SECONDS = 10.0


class _Worker:
    """The server of the device, and the threads that communicate with the supervisor."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lines = control.makefile("rb")
        self._start = start = WorkerStart(**decode_message(self._lines.readline())["start"])
        self._settings = settings = unpack_settings(start.settings)
        self._send_lock = threading.Lock()
        configure_process(start.name, log_level=settings.log_level, log_format=settings.log_format)
        self._server = DeviceServer(_listen(Path(start.address)), lambda: _open(settings, start))

    def run(self) -> int:
        """Serves until the stop command. Returns the exit status."""
        threading.Thread(target=self._handle_commands, name="control", daemon=True).start()
        threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()
        try:
            self._server.run()
        except (ConfigurationError, ImportError):
            code = WRONG_CONFIGURATION  # the supervisor logs the reason
        except DeviceLost as error:
            log.error("this process ends and is replaced: %s", error)  # noqa: TRY400  no traceback needed
            code = 1
        except Exception:
            log.exception("the device cannot be opened")
            code = 1
        else:
            return 0
        self._send_status()
        return code

    def _send_status(self) -> None:
        status = self._server.status | {"log_lines_dropped": dropped_log_lines()}
        with self._send_lock, suppress(OSError):  # the supervisor may have died
            self._control.sendall(encode_message({"status": status}))

    def _send_heartbeats(self) -> None:
        pause = threading.Event()
        while not pause.wait(heartbeat_interval(self._settings)):
            self._send_status()

    def _handle_commands(self) -> None:
        self._send_status()
        with suppress(OSError):
            for line in self._lines:
                match decode_message(line)["do"]:
                    case "status":
                        self._send_status()
                    case "stop":
                        if self._server.status["state"] == "opening":
                            os._exit(0)  # nothing is lost, and loading cannot be interrupted
                        self._server.stop()
        self._outlive_supervisor()

    def _outlive_supervisor(self) -> None:
        """Waits until the front ends have drained, removes the dead supervisor's folder, and exits."""
        poll = select.poll()
        poll.register(self._start.liveness_pipe, select.POLLIN)
        poll.poll(1000 * (self._settings.shutdown_delay + self._settings.drain_seconds + _OVERDUE_SECONDS))
        shutil.rmtree(Path(self._start.address).parent, ignore_errors=True)
        os._exit(1)


def _listen(address: Path) -> socket.socket:
    address.parent.mkdir(mode=0o700, exist_ok=True)  # a service that tidies /tmp may have removed it
    address.unlink(missing_ok=True)  # of an earlier worker
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(address))
    listener.listen(BACKLOG)
    return listener


def _open(settings: Settings, start: WorkerStart) -> ServedDevice:
    limit_spinning()
    # Imported here because torch takes long to import, and heartbeats start before.
    from service.inference.device import open_device

    device = open_device(
        settings.model_copy(update={"devices": start.device}),
        known_limits=start.measured_limits,
        selects_encoder_in_background=True,
    )
    # What is loaded now stays. Without it, the collection after images that did not fit into memory takes no time, instead
    # of 0.2 seconds of a request.
    gc.collect()
    gc.freeze()
    return device


def main() -> None:
    """Runs the worker. The argument is the number of the control socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    unblock_signals()
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    code = _Worker(socket.socket(fileno=descriptor)).run()
    drain_standard_error()
    # Without the interpreter's shutdown: threads are still reading, and the libraries of a device shut down slowly.
    os._exit(code)


if __name__ == "__main__":
    main()
