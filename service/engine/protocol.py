"""The seams of the engine: what routes call, what the device does, and the values that pass between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "BatchReport",
    "Decoded",
    "Device",
    "EncodeTicket",
    "Encoded",
    "Engine",
    "EngineObserver",
    "EngineSnapshot",
    "EngineState",
    "GenerateItem",
    "Generated",
    "LaneName",
    "LaneSnapshot",
    "NullObserver",
    "RowState",
    "StepCallback",
    "Stepped",
    "Timing",
]

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
LaneName = Literal["encode", "decode", "generate"]
StepCallback = Callable[[int, int, Ids, Ids], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a request cost: seconds until its first image was taken, seconds of device time of all batches that held
    images of it, and the size of the largest of those.
    """

    queue_seconds: float
    device_seconds: float
    batch_images: int


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """``tokens`` int64 [n, K]."""

    tokens: Ids
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """``images`` uint8 [n, S, S, 3]."""

    images: Pixels
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class GenerateItem:
    """One image to make: a class id or None, a seed, and settings that only the device understands.

    The settings are a plain value that can be pickled, so that the device may be in another process.
    """

    label: int | None
    seed: int
    settings: object


@dataclass(frozen=True, kw_only=True, slots=True)
class RowState:
    """An image between two sampling steps, as a plain value: a step is a pure function of it, so any worker can do it,
    and do it again. ``tokens`` int64 [K], or None before the first step; ``step`` counts the steps done.
    """

    label: int | None
    seed: int
    settings: object
    step: int
    tokens: Ids | None


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """Rows after a step: ``tokens`` int64 [n, K], the mask id where unknown; ``sampled`` int64 [n, K], the device's
    guess of every token; ``finished`` bool [n].
    """

    tokens: Ids
    sampled: Ids
    finished: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """``tokens`` int64 [n, K]."""

    tokens: Ids
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """Where the engine is in its life; ``reason`` says why it is not ready."""

    name: Literal["starting", "ready", "draining", "stopped", "failed"]
    reason: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether new work is taken."""
        return self.name == "ready"


@dataclass(frozen=True, kw_only=True)
class LaneSnapshot:
    """What a lane holds: images and bytes that wait, also those that a busy worker has been handed, and images that a worker
    is at.
    """

    queued_images: int
    queued_bytes: int
    active_images: int


@dataclass(frozen=True, kw_only=True)
class EngineSnapshot:
    """All lanes at one moment."""

    encode: LaneSnapshot
    decode: LaneSnapshot
    generate: LaneSnapshot

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Figures by lane."""
        return asdict(self)


class EncodeTicket(Protocol):
    """Room for the images of one request, which decoding threads fill. Used as a context: leaving it abandons what has
    no result yet.
    """

    def put(self, index: int, pixels: Pixels) -> None:
        """Copies image ``index``, uint8 [S, S, 3], into the batch that is being filled. Called once for each image, in
        any thread. Raises ``ValueError`` for another shape or type.
        """

    async def result(self) -> Encoded:
        """Waits for the ids of all images. Raises as ``Engine.encode`` does."""

    def __enter__(self) -> EncodeTicket: ...

    def __exit__(self, *_: object) -> None: ...


class Engine(Protocol):
    """Turns requests into device batches and back. ``deadline`` is a time of the engine's clock (monotonic).

    The calls raise ``QueueFull``, ``DeadlineExceeded``, ``EngineStopped``, ``DeviceFailed`` or ``WorkerCrashed``, and
    ``ValueError`` for an array of another shape or type. Cancelling one abandons what the device has not taken yet.
    """

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""

    def start(self) -> None:
        """Begins to open the device. Called once, in the event loop that will wait for results."""

    async def ready(self) -> None:
        """Waits until work is taken. Raises ``EngineStopped`` if it never will be."""

    async def stop(self, drain_seconds: float) -> None:
        """Refuses new work, finishes what was accepted within the time, and fails what is left."""

    def snapshot(self) -> EngineSnapshot:
        """What waits and what is being worked on."""

    def open_encode(self, count: int, *, image_size: int, deadline: float) -> EncodeTicket:
        """Room for ``count`` images of S x S pixels, before they are decoded; refused when there is none."""

    async def encode(self, images: Pixels, *, deadline: float) -> Encoded:
        """Images uint8 [n, S, S, 3], n >= 1."""

    async def decode(self, tokens: Ids, *, deadline: float) -> Decoded:
        """Ids int64 [n, K], n >= 1."""

    async def generate(
        self, items: Sequence[GenerateItem], *, deadline: float, on_step: StepCallback | None = None
    ) -> Generated:
        """``on_step(index, step, tokens, sampled)`` is called in the event loop after every sampling step of an item,
        with its ids int64 [K] so far and the device's guess of all of them.
        """


class Device(Protocol):
    """The models, as the one thread that owns them calls them. A batch's rows may belong to many requests."""

    def encode(self, images: Pixels) -> Ids:
        """Uint8 [b, S, S, 3] -> int64 [b, K]."""

    def decode(self, tokens: Ids) -> Pixels:
        """Int64 [b, K] -> uint8 [b, S, S, 3]."""

    def step(self, rows: Sequence[RowState]) -> Stepped:
        """Rows, at any steps, after one step more of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """A batch that came back: seconds that handing it to the worker took, that the device had it, and that copying its
    results to their requests took; ``callers`` are what ``EngineObserver.caller`` gave for the requests in it.
    """

    lane: LaneName
    device: str
    images: int
    hand_over_seconds: float
    device_seconds: float
    results_seconds: float
    callers: Sequence[object] = ()


class EngineObserver(Protocol):
    """Told of the engine's work, from its device thread and from the event loop; must be quick, thread-safe and never
    raise.
    """

    def caller(self) -> object | None:
        """A request was admitted, in the event loop and the context of whoever asked: what its batches are to be reported
        with, or None.
        """

    def batch(self, report: BatchReport) -> None:
        """The device has run a batch (of generate: one step). Told before those who wait for its results are."""

    def queue_wait(self, lane: str, seconds: float) -> None:
        """An image was taken by the device."""

    def rejected(self, lane: str, reason: str) -> None:
        """A request was refused at admission: ``images``, ``bytes``, ``too_large``, ``deadline`` or ``stopped``."""

    def abandoned(self, lane: str, stage: str) -> None:
        """An image was dropped unfinished: ``expired``, or ``cancelled`` because nobody waits."""


class NullObserver:
    """Listens to nothing."""

    def caller(self) -> object | None:
        """See ``EngineObserver``."""
        return None

    def batch(self, report: BatchReport) -> None:
        """See ``EngineObserver``."""

    def queue_wait(self, lane: str, seconds: float) -> None:
        """See ``EngineObserver``."""

    def rejected(self, lane: str, reason: str) -> None:
        """See ``EngineObserver``."""

    def abandoned(self, lane: str, stage: str) -> None:
        """See ``EngineObserver``."""
