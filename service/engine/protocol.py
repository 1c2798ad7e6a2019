"""What a device and an observer of the engine implement, and the values that pass between them, the engine and the API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
LaneName = Literal["encode", "decode", "generate"]
RejectReason = Literal["images", "bytes", "too_large", "deadline", "stopped"]
AbandonStage = Literal["expired", "cancelled"]
StepCallback = Callable[[int, int, Ids, Ids], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a request cost: seconds until a device started its first image, device seconds of all batches that held its
    images, and the size of the largest of these batches.
    """

    queue_seconds: float
    device_seconds: float
    batch_images: int


@dataclass(frozen=True, kw_only=True)
class EngineTokens:
    """The result of encode and of generate: ``tokens`` int64 [n, K], or of an encode request for latents float32 [n, K, C],
    of a VAE mean and log-variance [n, K, 2C].
    """

    tokens: npt.NDArray[Any]
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class EngineImages:
    """The result of decode: ``images`` uint8 [n, S, S, 3]."""

    images: Pixels
    timing: Timing


@dataclass(frozen=True, kw_only=True)
class GenerateItem:
    """One image to generate: a class id or None, a seed, and settings that only the device interprets.

    The settings can be pickled, because the device may be in another process.
    """

    label: int | None
    seed: int
    settings: object


@dataclass(frozen=True, kw_only=True, slots=True)
class RowState:
    """An image between two sampling steps. A step is a pure function of it, so any worker can run it, and repeat it.
    ``tokens`` int64 [K], or None before the first step; ``step`` counts the steps done.
    """

    label: int | None
    seed: int
    settings: object
    step: int
    tokens: Ids | None


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """Rows after a step: ``tokens`` int64 [n, K], the mask id where masked; ``sampled`` int64 [n, K], the prediction of
    every token; ``finished`` bool [n].
    """

    tokens: Ids
    sampled: Ids
    finished: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """The engine's lifecycle state; ``reason`` says why it is not ready."""

    name: Literal["starting", "ready", "draining", "stopped", "failed"]
    reason: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether requests are admitted."""
        return self.name == "ready"


@dataclass(frozen=True, kw_only=True)
class LaneSnapshot:
    """What a lane holds: images and bytes that wait (including images prefetched by a busy worker), and images being
    processed.
    """

    queued_images: int
    queued_bytes: int
    active_images: int


class ConfigurationError(Exception):
    """A device cannot be opened as it is configured, because of a wrong setting or file: no restart cures that."""


class DeviceLost(Exception):
    """A device can run no batch any more; its process must be replaced."""


class Device(Protocol):
    """The models on one device, called by the thread that owns it. The rows of a batch may belong to many requests.

    An error that a method raises is an error of the batch (``service.engine.jobs.JobRunner`` names the exceptions).
    """

    def encode(self, images: Pixels) -> Ids:
        """Uint8 [b, S, S, 3] -> int64 [b, K]."""

    def latents(self, images: Pixels) -> Latents:
        """Uint8 [b, S, S, 3] -> float32 [b, K, C], of a VAE mean and log-variance [b, K, 2C]."""

    def decode(self, tokens: Ids | Latents) -> Pixels:
        """Int64 [b, K], of a VAE float32 [b, K, C], -> uint8 [b, S, S, 3]."""

    def step(self, rows: Sequence[RowState]) -> Stepped:
        """Runs one more sampling step of every row; rows may be at different steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """A finished batch: seconds for sending it to the worker, on the device, and for copying its results to their
    requests; ``callers`` holds what ``EngineObserver.caller`` returned for the requests in it.
    """

    lane: LaneName
    device: str
    images: int
    hand_over_seconds: float
    device_seconds: float
    results_seconds: float
    callers: Sequence[object] = ()


class EngineObserver:
    """Receives the engine's events, in its device threads and in the event loop; this one ignores them. Methods must be
    fast and thread-safe, and must not raise.
    """

    def caller(self) -> object | None:
        """Called when a request is admitted, in the event loop and the caller's context. Returns what to report with its
        batches, or None.
        """
        return None

    def batch(self, report: BatchReport) -> None:
        """A device has run a batch (of generate: one step). Called before the callers get the results."""

    def queue_wait(self, lane: LaneName, seconds: float) -> None:
        """A device has started an image."""

    def rejected(self, lane: LaneName, reason: RejectReason) -> None:
        """A request was rejected at admission."""

    def abandoned(self, lane: LaneName, stage: AbandonStage) -> None:
        """An image was dropped unfinished: ``expired``, or ``cancelled`` because no caller waits for it."""
