"""A fake device, observer and clock that tests control and inspect."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine import Engine, EngineTokens, GenerateItem, InlineLink, LaneSnapshot, protocol
from service.engine.protocol import BatchReport, Device, RowState, Stepped
from service.engine.remote import RemoteLink
from service.engine.worker import DeviceServer

Ids = npt.NDArray[np.int64]
Latents = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# The fixtures of conftest.py that are functions.
Build = Callable[..., Engine]
Start = Callable[..., Awaitable[Engine]]
Submit = Callable[..., Awaitable[list[asyncio.Task[Any]]]]
Busy = Callable[[Engine], Awaitable[asyncio.Task[Any]]]

Pool = Callable[..., Awaitable[tuple[Engine, list["FakeDevice"], list["FakeWorker"]]]]

PATIENCE = 20.0  # seconds until a test gives up on a thread; never a verdict on speed
NUM_TOKENS = 4

AT_REST = dict.fromkeys(
    ("encode", "decode", "generate"), LaneSnapshot(queued_images=0, queued_bytes=0, active_images=0)
)


def inline_engine(device_factory: Callable[[], Device], **options: Any) -> Engine:
    """An engine whose thread owns the device."""
    return Engine([InlineLink(device_factory)], **options)


def remote_engine(addresses: Mapping[str, str], *, depth: int = 2, **options: Any) -> Engine:
    """An engine in front of workers, by name."""
    return Engine([RemoteLink(name, address, depth) for name, address in addresses.items()], **options)


async def encode(engine: Engine, batch: Pixels, *, deadline: float, latents: bool = False) -> EngineTokens:
    """The ids of images that arrive at the same time, or their latents."""
    size = batch.shape[1]
    with await engine.open_encode(len(batch), image_size=size, deadline=deadline, latents=latents) as ticket:
        with engine._queues.wake:  # no worker takes a part of them
            for index, pixels in enumerate(batch):
                ticket.put(index, pixels)
            del batch, pixels
        return await ticket.result()


def images(*values: int) -> Pixels:
    """One 2x2 image for each value below 65536."""
    batch = np.zeros((len(values), 2, 2, 3), np.uint8)
    batch[:, 0, 0, 0], batch[:, 0, 0, 1] = np.array(values) // 256, np.array(values) % 256
    return batch


def tokens(*values: int) -> Ids:
    """The ids that the device returns for those images."""
    return np.array(values, np.int64)[:, None] * 10 + np.arange(NUM_TOKENS)


def latents(*values: int) -> Latents:
    """The latents that the device returns for those images."""
    return tokens(*values).astype(np.float32)[:, :, None]


def values_of_images(batch: Pixels) -> tuple[int, ...]:
    return tuple((batch[:, 0, 0, 0].astype(int) * 256 + batch[:, 0, 0, 1]).tolist())


def values_of_tokens(batch: Ids | Latents) -> tuple[int, ...]:
    return tuple((batch.reshape(len(batch), -1)[:, 0] // 10).astype(int).tolist())


def items(*seeds: int, steps: int = 3, label: int | None = None) -> list[GenerateItem]:
    """Images to generate; the settings of this device are the number of steps."""
    return [GenerateItem(label=label, seed=seed, settings=steps) for seed in seeds]


def generated(*seeds: int, steps: int = 3, label: int | None = None) -> Ids:
    """The ids that the device returns for those items."""
    return np.array([_row_tokens(label, seed, steps) for seed in seeds])


def _row_tokens(label: int | None, seed: int, step: int) -> Ids:
    return np.array([seed, step, -1 if label is None else label, seed * 1000 + step], np.int64)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop run until a thread makes the condition true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  a thread's doing
            await asyncio.sleep(0)


class DeviceLost(BaseException):
    """An error that ``except Exception`` does not catch, as from a native library."""


@dataclass(frozen=True)
class Call:
    """A call of the device: the values of its rows; for ``step`` (seed, step) of each."""

    name: str
    rows: tuple[Any, ...]


@dataclass
class FakeDevice:
    """Computes pure functions that a test can check. While it is held, each call blocks until it is let through.

    A value in ``poison`` makes the calls fail that bear it; one in ``fatal`` kills the thread, and one in
    ``fatal_once`` does so the first time. ``lose_next`` kills it whatever the next call bears; ``errors`` are what the next
    calls raise.
    """

    calls: list[Call] = field(default_factory=list)
    poison: set[int] = field(default_factory=set)
    fatal: set[int] = field(default_factory=set)
    fatal_once: set[int] = field(default_factory=set)
    lose_next: bool = False
    errors: list[Exception] = field(default_factory=list)
    lost: Counter[int] = field(default_factory=Counter)
    threads: set[int] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _open: bool = True
    _permits: int = 0
    _waiting: bool = False

    def hold(self) -> None:
        with self._changed:
            self._open = False

    def let_through(self, calls: int) -> None:
        with self._changed:
            self._permits += calls
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    @property
    def is_held(self) -> bool:
        """Whether a call is blocked."""
        with self._changed:
            return self._waiting and not self._permits and not self._open

    def wait_for_calls(self, count: int) -> None:
        """Waits until that many calls were made, the last of which may be blocked."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, PATIENCE), self.calls

    def rows_of(self, name: str) -> list[tuple[Any, ...]]:
        return [call.rows for call in self.calls if call.name == name]

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]

    def encode(self, images: Pixels) -> Ids:
        values = values_of_images(images)
        self._enter("encode", values, values)
        return tokens(*values)

    def latents(self, images: Pixels) -> Latents:
        values = values_of_images(images)
        self._enter("latents", values, values)
        return latents(*values)

    def decode(self, tokens: Ids | Latents) -> Pixels:
        values = values_of_tokens(tokens)
        self._enter("decode", values, values)
        return images(*values)

    def step(self, rows: Sequence[RowState]) -> Stepped:
        self._enter("step", tuple((row.seed, row.step) for row in rows), tuple(row.seed for row in rows))
        steps = np.array([row.settings for row in rows], int)
        if (steps < 1).any():
            raise ValueError("no steps")
        done = [row.step + 1 for row in rows]
        for row in rows:  # the state must be that of the last step
            expected = None if row.step == 0 else _row_tokens(row.label, row.seed, row.step)
            np.testing.assert_array_equal(row.tokens, expected)
        made = np.array([_row_tokens(row.label, row.seed, step) for row, step in zip(rows, done, strict=True)])
        return Stepped(tokens=made, sampled=made + 1, finished=np.array(done) >= steps)

    def _enter(self, name: str, rows: tuple[Any, ...], values: tuple[int, ...]) -> None:
        with self._changed:
            self.threads.add(threading.get_ident())
            self.calls.append(Call(name, rows))
            self._waiting = True
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._open or self._permits > 0, PATIENCE), "never let through"
            self._waiting = False
            if not self._open:
                self._permits -= 1
        if self.lose_next or (self.fatal | self.fatal_once) & set(values):
            self.lose_next = False
            self.lost.update(values)
            self.fatal_once -= set(values)
            raise DeviceLost("the device fell off the bus")
        if self.errors:
            raise self.errors.pop(0)
        if bad := self.poison & set(values):
            raise ValueError(f"cannot compute {sorted(bad)}")


class FakeWorker:
    """A worker in a thread: serves the device on a socket, and restarts when the device is lost."""

    def __init__(self, address: Path, device_factory: Callable[[], Device], clock: Callable[[], float]) -> None:
        self.address = address
        self._device_factory = device_factory
        self._clock = clock
        self._is_stopping = False
        self.stays_down = False
        self._listen()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        self.address.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.address))
        listener.listen()
        self.server = DeviceServer(listener, self._device_factory, clock=self._clock)

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self.server.run()
            except (DeviceLost, protocol.DeviceLost):
                if self.stays_down:
                    return
                self._listen()

    def stop(self) -> None:
        self._is_stopping = True
        self.server.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.server.stop()  # the server may have been replaced meanwhile


class FakeObserver:
    """Records all events."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.batch_seconds: list[float] = []
        self.next_caller: object | None = None
        self.callers: list[list[object]] = []
        self.waits: list[tuple[str, float]] = []
        self.rejections: Counter[tuple[str, str]] = Counter()
        self.abandonments: Counter[tuple[str, str]] = Counter()

    def caller(self) -> object | None:
        return self.next_caller

    def batch(self, report: BatchReport) -> None:
        self.batches.append((report.lane, report.images))
        self.batch_seconds.append(report.device_seconds)
        self.callers.append(list(report.callers))

    def queue_wait(self, lane: str, seconds: float) -> None:
        self.waits.append((lane, seconds))

    def rejected(self, lane: str, reason: str) -> None:
        self.rejections[lane, reason] += 1

    def abandoned(self, lane: str, stage: str) -> None:
        self.abandonments[lane, stage] += 1


class FakeClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
