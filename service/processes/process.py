"""What every process of the service begins with: its name for ``ps``, its log, its signals, its event loop."""

from __future__ import annotations

import asyncio
import os
import signal

import setproctitle

from service.settings import LogFormat
from service.telemetry.log_lines import configure_log

__all__ = ["SWITCH_SECONDS", "begin_process", "event_loop", "hold_signals", "limit_spinning", "release_signals"]

# For ``sys.setswitchinterval``: keeps an event loop responsive beside the threads that decode and encode images.
SWITCH_SECONDS = 0.0005

_HELD = (signal.SIGINT, signal.SIGTERM)


def begin_process(name: str, *, log_level: str, log_format: LogFormat) -> None:
    """Names the process ``titok: NAME`` and sends its log lines, which bear the name, to standard error."""
    setproctitle.setproctitle(f"titok: {name}")
    configure_log(name, level=log_level, log_format=log_format)


def hold_signals() -> None:
    """Blocks SIGINT and SIGTERM, here and in processes that are started from now on: they wait until somebody is
    prepared for them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def release_signals() -> None:
    """Lets them in."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def limit_spinning() -> None:
    """For a process that is about to import torch: threads of an operator that wait for each other spin for some tens of
    microseconds, not for milliseconds, before they sleep. A thread that spins for long keeps the core from the one it
    waits for as soon as anybody else wants a core; one that does not spin at all is woken late on a machine at rest.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def event_loop() -> asyncio.Runner:
    """An event loop on uvloop where the platform has it."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
