"""One run from a source to a destination, and how it is done on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from models.runtime.cuda_graphs import CudaRecorder
from models.tokenizer import Tokenizer, load_tokenizer
from service.bulk.destination import Destination, Settings
from service.bulk.entries import Source
from service.bulk.errors import BulkError
from service.bulk.formats import Layout, check_format, files_of
from service.bulk.manifest import manifest_of, settings_of
from service.bulk.pipeline import tokenize_entries
from service.bulk.shards import Shard
from service.bulk.views import Views
from service.bulk.work import Progress, Work
from service.cpu_quota import usable_cores
from service.inference.calibration import calibrate

__all__ = ["Job", "Result", "fill", "open_device", "run_job", "tokenize_source", "told_to_go_on"]

_CPU_BATCH, _DEVICE_BATCH = 16, 128


@dataclass(frozen=True, kw_only=True)
class Job:
    """What ``titok tokenize`` was asked for; 0 as ``batch_size`` is what suits the device, as ``threads`` one a core."""

    source: Source
    destination: Path
    tokenizer: str
    weights: str | None
    device: str
    dtype: str
    format: str
    views: Views
    shard_images: int
    batch_size: int
    threads: int
    max_pixels: int

    def work(self, device: torch.device) -> Work:
        """The same, as the pipeline needs it."""
        return Work(
            views=self.views,
            shard_images=self.shard_images,
            batch_size=self.batch_size or (_CPU_BATCH if device.type == "cpu" else _DEVICE_BATCH),
            threads=self.threads or usable_cores(),
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class Result:
    """What is in the destination now."""

    images: int
    broken: int
    shards: int


def run_job(job: Job, *, progress: Progress | None = None) -> Result:
    """Does what is left to do. Raises ``BulkError``, and what loading the tokenizer raises."""
    check_format(job.format)
    tokenizer, work = open_device(job)
    with told_to_go_on(job):
        return tokenize_source(job, tokenizer, work, progress=progress)


@contextmanager
def told_to_go_on(job: Job) -> Iterator[None]:
    """What a file system refuses ends a run with a message that says how to go on."""
    try:
        yield
    except OSError as error:
        place = error.filename or f"{job.source.name} or {job.destination}"
        raise BulkError(
            f"{place}: {error.strerror or error}; what is written is whole, and the same command goes on"
        ) from error


def open_device(job: Job) -> tuple[Tokenizer, Work]:
    """The tokenizer on its device, ready for batches of the job's size."""
    name = job.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BulkError(f"{name!r} is no device: auto, cpu, cuda or cuda:N") from None
    work = job.work(device)
    tokenizer = load_tokenizer(job.tokenizer, weights=job.weights, device=str(device), dtype=job.dtype)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        tokenizer.encoder.record({1, work.batch_images * work.views.count}, CudaRecorder(device))
    # On a CPU each core encodes batches of its own.
    calibrate(tokenizer, work.batch_images * work.views.count, threads=1 if device.type == "cpu" else None)
    return tokenizer, work


def tokenize_source(job: Job, tokenizer: Tokenizer, work: Work, *, progress: Progress | None = None) -> Result:
    """Does what is left to do, with a tokenizer that is there."""
    layout = Layout(work.views.count, tokenizer.num_tokens, job.source.labels)

    def make(destination: Destination) -> None:
        def write(shard: Shard) -> None:
            destination.add(files_of(shard, job.format, layout))

        with ThreadPoolExecutor(1, "write") as writer:  # the device need not wait for the disk
            writing: Future[None] | None = None
            for gap in destination.gaps:
                entries = job.source.entries(gap.start)
                if gap.shards is not None:
                    entries = islice(entries, gap.shards * work.shard_images)
                for shard in tokenize_entries(entries, tokenizer, work, first_shard=gap.first, progress=progress):
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(write, shard)
            if writing is not None:
                writing.result()

    return fill(job, settings_of(job.source, tokenizer, work, job.format), make, progress=progress)


def fill(
    job: Job, settings: Settings, make: Callable[[Destination], None], *, progress: Progress | None = None
) -> Result:
    """Opens the destination, has ``make`` add all shards that are not whole, and finishes it."""
    with Destination(job.destination, settings) as destination:
        if progress is not None and destination.shards:
            progress(destination.images + destination.broken, destination.broken)
        if not destination.done:
            make(destination)
            if not destination.shards:
                raise BulkError(f"there are no images in {job.source.name}")
            destination.finish(manifest_of)
        return Result(destination.images, destination.broken, destination.shards)
