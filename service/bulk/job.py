"""A job of a bulk command: its options, and its computation on a device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch

from service.bulk.destination import Merge
from service.bulk.entries import Content, Entry, Source
from service.bulk.manifest import RunSettings
from service.bulk.shards import Row, Shard
from service.cpu_quota import usable_cores

_CPU_BATCH, _GPU_BATCH = 16, 128

Prepared = TypeVar("Prepared")
Output = TypeVar("Output")


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[Content]):
    """The options that all bulk commands have.

    ``shard_images``: entries per shard. ``batch_size``: most images in a batch, which has at least one entry; 0: depends on
    the device. ``threads`` work on images, and on a CPU run the model as well; 0: one per core.
    """

    source: Source[Content]
    destination: Path
    tokenizer: str
    weights: str | None
    device: str
    dtype: str
    shard_images: int
    batch_size: int
    threads: int

    @property
    @abstractmethod
    def views(self) -> int:
        """Images per entry that the model computes."""

    @property
    def merges(self) -> tuple[Merge, ...]:
        """What is merged when all shards are complete."""
        return ()

    @abstractmethod
    def load(self) -> "Task[Any, Any, Content]":
        """Loads the models on a device of this machine. Raises ``BulkError``, and what loading a model raises."""

    def check(self) -> None:
        """Raises ``ModuleNotFoundError`` if the output needs a package that is not installed."""

    def on(self, device_type: str) -> Self:
        """The job with the defaults for a device."""
        batch_size = self.batch_size or (_CPU_BATCH if device_type == "cpu" else _GPU_BATCH)
        return replace(self, batch_size=batch_size, threads=self.threads or usable_cores())

    @property
    def batch_images(self) -> int:
        """Entries per batch."""
        return max(1, self.batch_size // self.views)


class Task(ABC, Generic[Prepared, Output, Content]):
    """The computation of a job, with its models on a device: entries -> rows -> files.

    ``job`` has the defaults for the device. ``settings`` are the same on all devices and machines that may share the work.
    """

    job: Job[Content]
    settings: RunSettings
    device: torch.device

    @abstractmethod
    def prepare(self, entry: Entry[Content]) -> Prepared:
        """The model's input for an entry; called in several threads. Raises ``BrokenImage``."""

    @abstractmethod
    def submit(self, prepared: Sequence[Prepared]) -> Callable[[], Iterable[Output]]:
        """Submits a batch to the device; calling the result waits for the outputs, one per entry."""

    @abstractmethod
    def finish(self, entry: Entry[Content], output: Output) -> Row:
        """The row of an entry; called in several threads."""

    @abstractmethod
    def files(self, shard: Shard) -> dict[str, bytes]:
        """The contents of a shard's files, by name."""
