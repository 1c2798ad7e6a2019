"""A supervised child process: started, monitored by heartbeats, killed when it hangs, and restarted.

::

    start ──> opening ──> alive ──> dead ──> back-off ──┐
      ^                                                 │   0.1 s, doubled up to 10 s; reset after it was
      └─────────────────────────────────────────────────┘   ready for a minute
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from service.processes.control import ControlChannel
from service.processes.process import WRONG_CONFIGURATION, block_signals, unblock_signals

log = logging.getLogger(__name__)

Command = Literal["status", "drain", "close", "stop", "reload"]
DeathReason = Literal["exit", "signal", "hung", "stuck"]

FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 10.0
HEALTHY_SECONDS = 60.0
# Loading a large library or a large checkpoint can hold the interpreter for longer than any heartbeat may take.
OPENING_SECONDS = 120.0
STATUS_SECONDS = 0.3


class Child:
    """``name`` is the process name after ``titok:``. This interpreter runs ``module`` with the number of the control socket
    as argument; it inherits the descriptors ``pass_fds``.

    One that exits with ``WRONG_CONFIGURATION`` before it was ever ready is not restarted: ``configuration_error`` says why.
    It is ``hung`` if it sent no heartbeat for ``heartbeat_seconds`` and ``stuck`` if one batch has been running for longer
    than ``batch_timeout``; it is killed in both cases. ``after_death`` runs before a restart. ``carry_over`` names the entry
    of the last status to pass to the next start.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *,
        start: Mapping[str, Any],
        heartbeat_seconds: float,
        batch_timeout: float,
        pass_fds: Sequence[int] = (),
        after_death: Callable[[], None] = lambda: None,
        carry_over: str | None = None,
    ) -> None:
        self.name = name
        self.deaths: Counter[DeathReason] = Counter()
        self.last_death: str | None = None
        self.configuration_error: str | None = None
        self._was_ready = False
        self._ready_since: float | None = None  # in the life of this process, or of the one that ended last
        self._module = module
        self._start = dict(start)
        self._carry_over = carry_over
        self._heartbeat_seconds = heartbeat_seconds
        self._batch_timeout = batch_timeout
        self._pass_fds = tuple(pass_fds)
        self._after_death = after_death
        self._process: asyncio.subprocess.Process | None = None
        self._channel: ControlChannel | None = None
        self._started = 0.0
        self._silent_seconds = 0.0
        self._status: dict[str, Any] = {}
        self._last_failure: str | None = None
        self._heartbeat = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stop_command: Command | None = None

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process id; None while there is no process."""
        return self._process.pid if self._process is not None else None

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the process was started; 0 while there is none."""
        return time.monotonic() - self._started if self._process is not None else 0.0

    @property
    def restarts(self) -> int:
        """Number of restarts."""
        return self.deaths.total()

    @property
    def status(self) -> Mapping[str, Any]:
        """The last status message; empty before the first one and after the process has ended."""
        return self._status

    @property
    def state(self) -> str:
        """``starting``, the state in its status, ``restarting`` between two processes, or ``stopped``."""
        if self._process is not None:
            return str(self._status.get("state", "starting"))
        return "stopped" if self._stopping.is_set() else "restarting" if self.restarts else "starting"

    @property
    def reason(self) -> str | None:
        """Why it is not ready."""
        if self._process is not None and self._status:
            reason: str | None = self._status.get("reason")
            return reason
        return self._last_failure or self.last_death

    async def fresh_status(self) -> Mapping[str, Any]:
        """Requests a status and waits for it briefly; returns the last one if there is no answer in time."""
        if self._process is not None and self._status:
            self._heartbeat.clear()
            self.send("status")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await self._heartbeat.wait()
        return self._status

    # --- lifecycle ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps the process running until ``stop``, ``kill`` or a configuration error, then waits for its end."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self._stopping.is_set():
            await self._run_once()
            if self._stopping.is_set() or self.configuration_error is not None:
                return
            self._after_death()
            if self._ready_since is not None and time.monotonic() - self._ready_since >= HEALTHY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            log.warning("%s %s; restarting in %.1f s", self.name, self.last_death, backoff)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff):
                    await self._stopping.wait()
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)

    def send(self, command: Command) -> None:
        """Sends a command to the process, if there is one."""
        if self._channel is not None:
            self._channel.send({"do": command})

    def stop(self, command: Command) -> None:
        """Sends the command that ends the process, and does not restart it."""
        self._stop_command = command
        self._stopping.set()
        self.send(command)

    def kill(self) -> None:
        """Kills the process, and does not restart it."""
        self._stopping.set()
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _run_once(self) -> None:
        self._started, self._silent_seconds, self._ready_since = time.monotonic(), 0.0, None
        try:
            process, control = await self._spawn()
        except (OSError, RuntimeError) as error:  # the latter without a free thread to wait for the process
            self._note_death(f"cannot be started: {error}", "exit")
            return
        self._process = process
        self._channel = channel = await ControlChannel.open(control)
        channel.send({"start": self._start})
        if self._stop_command is not None:
            self.send(self._stop_command)
        listening = asyncio.create_task(self._listen(channel))
        watching = asyncio.create_task(self._watch())
        try:
            code = await process.wait()
            # The last status may say why it ended. A process that it left behind may hold the socket open.
            await asyncio.wait((listening,), timeout=1.0)
            if watching.done():
                self._note_death(*watching.result())
            elif code < 0:
                self._note_death(f"was ended by {_signal_name(-code)}", "signal")
            else:
                self._note_death(f"exited with {code}", "exit")
                if code == WRONG_CONFIGURATION and not self._was_ready:
                    self.configuration_error = self._last_failure or self.last_death
        finally:
            self._kill()  # if this task was cancelled: no process may be left behind
            watching.cancel()
            listening.cancel()
            channel.close()
            self._process = self._channel = None
            self._status = {}
            # Wait for the killed process, which would stay a zombie otherwise.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 1.0)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """Starts the process; returns it and this end of its control socket. Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        block_signals()  # until the child has its handlers
        try:
            # -P: without it the child would import a package "service" in the working directory.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", self._module, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *self._pass_fds),
            )
        except BaseException:
            ours.close()
            raise
        else:
            return process, ours
        finally:
            theirs.close()
            unblock_signals()

    async def _listen(self, channel: ControlChannel) -> None:
        while (message := await channel.receive()) is not None:
            self._silent_seconds = 0.0
            self._status = message["status"]
            if self._status.get("state") == "ready":
                self._ready_since = self._ready_since or time.monotonic()
                self._was_ready = True
                if self._carry_over is not None:
                    self._start[self._carry_over] = self._status[self._carry_over]
            self._heartbeat.set()

    async def _watch(self) -> tuple[str, DeathReason]:
        """Kills the process if it hangs; returns what happened and the reason."""
        tick = self._heartbeat_seconds / 8
        while True:
            await asyncio.sleep(tick)
            # Counted in ticks, not by the clock: if this process was suspended, the child was not silent.
            self._silent_seconds += tick
            opened = self._status.get("state", "opening") != "opening"
            limit = self._heartbeat_seconds if opened else max(self._heartbeat_seconds, OPENING_SECONDS)
            if self._silent_seconds > limit:
                self._kill()
                return f"did not answer for {limit:g} s and was killed", "hung"
            if self._status.get("busy_seconds", 0.0) > self._batch_timeout:
                self._kill()
                return f"was in one batch for more than {self._batch_timeout:g} s and was killed", "stuck"

    def _note_death(self, death: str, reason: DeathReason) -> None:
        if not self._stopping.is_set():
            self.last_death = death
            self._last_failure = self._status.get("reason")
            self.deaths[reason] += 1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
