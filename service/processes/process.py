"""Set-up of every process of the service: its name in ``ps``, logging, signals, event loop."""

from __future__ import annotations

import asyncio
import os
import signal

import setproctitle

from service.settings import LogFormat
from service.telemetry.log_lines import configure_log
from service.telemetry.log_writer import write_standard_error_in_thread

# For ``sys.setswitchinterval``: keeps the event loop responsive while threads decode and encode images.
SWITCH_SECONDS = 0.0005

# The exit status of a process that cannot start as it is configured (EX_CONFIG of sysexits.h): no restart cures that.
WRONG_CONFIGURATION = 78

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def configure_process(name: str, *, log_level: str, log_format: LogFormat) -> None:
    """Names the process ``titok: NAME`` and logs under that name to standard error."""
    setproctitle.setproctitle(f"titok: {name}")
    write_standard_error_in_thread()
    configure_log(name, level=log_level, log_format=log_format)


def block_signals() -> None:
    """Blocks SIGINT, SIGTERM and SIGHUP, also in processes started from now on; the kernel keeps them meanwhile."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def unblock_signals() -> None:
    """Delivers SIGINT, SIGTERM and SIGHUP again, once there are handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def limit_spinning() -> None:
    """Limits how long OpenMP threads spin at a barrier before they sleep, to tens of microseconds. Call it before importing
    torch. On a busy machine a thread that spins for longer takes the core from the thread it waits for; on an idle machine
    a thread that does not spin at all wakes up late.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def event_loop() -> asyncio.Runner:
    """A runner of an event loop, on uvloop where the platform has it."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
