"""Streams, events and the order of accesses to memory, by vector clocks.

Every stream counts its operations. An operation sees those of another stream only if it waited for them, or if the host
had waited for them before it was launched. Two accesses to one memory of which one writes must be ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Clock = dict[int, int]
"""How many operations of each stream are known to be complete."""


class Race(AssertionError):
    """Two accesses to memory are not ordered."""


def merge(clock: Clock, other: Clock) -> None:
    for stream, time in other.items():
        clock[stream] = max(clock.get(stream, 0), time)


class Stream:
    """A stream, as ``torch.cuda.Stream``."""

    def __init__(self, host: Host, number: int) -> None:
        self._host = host
        self.number = number
        self.clock: Clock = {number: 0}

    def tick(self) -> int:
        """The time of a new operation, which follows all that the host has waited for."""
        merge(self.clock, self._host.clock)
        self.clock[self.number] += 1
        return self.clock[self.number]

    def wait_stream(self, other: Stream) -> None:
        merge(self.clock, other.clock)

    def wait_event(self, event: Event) -> None:
        merge(self.clock, event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._host)
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._host.wait(self.clock)


class Event:
    """An event, as ``torch.cuda.Event``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict((stream or self._host.current).clock)

    def synchronize(self) -> None:
        self._host.wait(self.clock)

    def query(self) -> bool:
        return self._host.knows(self.clock)


@dataclass
class Memory:
    """Of a device, or pinned memory of the host: who has accessed it last."""

    kind: Literal["device", "pinned"]
    stream: int | None  # to whose pool it returns; None: that of graphs
    num_bytes: int = 0
    written: tuple[int, int] | None = None
    read: dict[int, int] = field(default_factory=dict)


@dataclass
class Pending:
    """An asynchronous copy from or to pinned memory: ``complete`` is called when the host has waited for it."""

    stream: int
    time: int
    complete: Callable[[], None]


class Host:
    """The thread that launches everything: its clock, its current stream, and copies that it has not waited for."""

    def __init__(self) -> None:
        self.clock: Clock = {}
        self.current = Stream(self, 0)
        self.pending: list[Pending] = []

    def wait(self, clock: Clock) -> None:
        merge(self.clock, clock)
        arrived = [each for each in self.pending if self.clock.get(each.stream, 0) >= each.time]
        self.pending = [each for each in self.pending if each not in arrived]
        for each in arrived:
            each.complete()

    def knows(self, clock: Clock) -> bool:
        return all(self.clock.get(stream, 0) >= time for stream, time in clock.items())


def check(clock: Clock, memory: Memory, name: Any, *, writes: bool) -> None:
    """Raises ``Race`` if an access with this clock is not ordered after the conflicting ones before it."""
    before = dict([memory.written]) if memory.written else {}
    if writes:
        merge(before, memory.read)
    for stream, time in before.items():
        if clock.get(stream, 0) < time:
            what = "writes" if writes else "reads"
            raise Race(f"{name} {what} {memory.kind} memory that stream {stream} may still be using")
