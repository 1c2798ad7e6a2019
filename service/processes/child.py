"""A process that the supervisor keeps alive: started, listened to, killed when it hangs, started again.

::

    start ──> opening ──> alive ──> dead ──> back-off ──┐
      ^                                                 │   0.1 s, doubled up to 10 s; from the beginning again
      └─────────────────────────────────────────────────┘   after a minute of health
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
from service.processes.process import hold_signals, release_signals

__all__ = ["Child", "DeathReason"]

log = logging.getLogger(__name__)

Command = Literal["status", "drain", "close", "stop"]
DeathReason = Literal["exit", "signal", "hung", "stuck"]

FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 10.0
HEALTHY_SECONDS = 60.0
# Loading a large library or a large checkpoint can hold the interpreter for longer than any heartbeat may take.
OPENING_SECONDS = 120.0
STATUS_SECONDS = 0.3


class Child:
    """``name`` is its title for ``ps`` after ``titok:``; ``module`` is run by this interpreter with the control socket's
    number as its argument, and with the descriptors ``pass_fds``.

    It is ``hung`` when it was silent for ``heartbeat_seconds``, ``stuck`` when its status has had a batch under way for
    longer than ``batch_timeout``; either way it is killed. ``after_death`` runs before the next start, which is told what
    the last status had under the name ``remember``.
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
        remember: str | None = None,
    ) -> None:
        self.name = name
        self.deaths: Counter[DeathReason] = Counter()
        self.last_death: str | None = None
        self._module = module
        self._start = dict(start)
        self._remember = remember
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
        self._beat = asyncio.Event()
        self._leaving = asyncio.Event()
        self._farewell: Command | None = None

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """None while there is no process."""
        return self._process.pid if self._process is not None else None

    @property
    def uptime_seconds(self) -> float:
        """Of the process there is; 0 where there is none."""
        return time.monotonic() - self._started if self._process is not None else 0.0

    @property
    def restarts(self) -> int:
        """How often it has been replaced."""
        return self.deaths.total()

    @property
    def status(self) -> Mapping[str, Any]:
        """What the process said last; empty before its first word and after its last."""
        return self._status

    @property
    def state(self) -> str:
        """``starting``, what its status says, ``restarting`` between two lives, or ``stopped``."""
        if self._process is not None:
            return str(self._status.get("state", "starting"))
        return "stopped" if self._leaving.is_set() else "restarting" if self.restarts else "starting"

    @property
    def reason(self) -> str | None:
        """Why it is not ready."""
        if self._process is not None and self._status:
            reason: str | None = self._status.get("reason")
            return reason
        return self._last_failure or self.last_death

    async def fresh_status(self) -> Mapping[str, Any]:
        """What it says when it is asked, or its last word if it does not answer in time."""
        if self._process is not None and self._status:
            self._beat.clear()
            self.send("status")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await self._beat.wait()
        return self._status

    # --- its lives ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps it alive until ``leave`` or ``kill``, and waits for its end."""
        backoff = FIRST_BACKOFF_SECONDS
        while not self._leaving.is_set():
            await self._live()
            if self._leaving.is_set():
                return
            self._after_death()
            if time.monotonic() - self._started >= HEALTHY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            log.warning("%s %s; another is started in %.1f s", self.name, self.last_death, backoff)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff):
                    await self._leaving.wait()
            backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)

    def send(self, command: Command) -> None:
        """Tells the process, if there is one."""
        if self._channel is not None:
            self._channel.send({"do": command})

    def leave(self, command: Command) -> None:
        """Asks it to end, and starts it no more."""
        self._farewell = command
        self._leaving.set()
        self.send(command)

    def kill(self) -> None:
        """Ends it at once, and starts it no more."""
        self._leaving.set()
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _live(self) -> None:
        self._started, self._silent_seconds = time.monotonic(), 0.0
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = process = await self._spawn(theirs)
        except OSError as error:
            ours.close()
            self._note_death(f"cannot be started: {error}", "exit")
            return
        self._channel = channel = await ControlChannel.open(ours)
        channel.send({"start": self._start})
        if self._farewell is not None:
            self.send(self._farewell)
        listening = asyncio.create_task(self._listen(channel))
        watching = asyncio.create_task(self._watch())
        try:
            code = await process.wait()
            # Its last words may say why; a process that it left behind may hold the socket open for ever.
            await asyncio.wait((listening,), timeout=1.0)
            if watching.done():
                self._note_death(*watching.result())
            elif code < 0:
                self._note_death(f"was ended by {_signal_name(-code)}", "signal")
            else:
                self._note_death(f"exited with {code}", "exit")
        finally:
            self._kill()  # unless it has ended: nobody would look after it
            watching.cancel()
            listening.cancel()
            channel.close()
            self._process = self._channel = None
            self._status = {}
            # A cancelled supervisor stays for the end of what it has killed: else it would be a zombie of nobody's.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 1.0)

    async def _spawn(self, control: socket.socket) -> asyncio.subprocess.Process:
        hold_signals()  # until the child is prepared for them
        try:
            # Without -P the child would import whatever is called "service" in the working directory.
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", self._module, str(control.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(control.fileno(), *self._pass_fds),
            )
        finally:
            release_signals()

    async def _listen(self, channel: ControlChannel) -> None:
        while (message := await channel.receive()) is not None:
            self._silent_seconds = 0.0
            self._status = message["status"]
            if self._remember is not None and self._status.get("state") == "ready":
                self._start[self._remember] = self._status[self._remember]
            self._beat.set()

    async def _watch(self) -> tuple[str, DeathReason]:
        """Waits until the process has to be killed, and kills it."""
        tick = self._heartbeat_seconds / 8
        while True:
            await asyncio.sleep(tick)
            # Counted in ticks, not by the clock: if this process was stopped, the children were not silent.
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
        if not self._leaving.is_set():
            self.last_death = death
            self._last_failure = self._status.get("reason")
            self.deaths[reason] += 1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
