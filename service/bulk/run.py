"""One run from a source to a destination on this machine."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from models.graphs import CudaRecorder
from models.tokenizer import Tokenizer, load_tokenizer
from service.bulk.destination import Destination
from service.bulk.entries import Position, Source
from service.bulk.errors import BulkError
from service.bulk.formats import Layout, check_format, files_of
from service.bulk.manifest import manifest_of, settings_of
from service.bulk.pipeline import Progress, Work, tokenize_entries
from service.bulk.shards import Shard
from service.bulk.views import Views

__all__ = ["Job", "Result", "open_device", "run_job", "tokenize_source"]

_CPU_BATCH, _DEVICE_BATCH = 16, 128


@dataclass(frozen=True, kw_only=True)
class Job:
    """What ``titok tokenize`` was asked for; a ``batch_size`` of 0 is what suits the device."""

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
            threads=self.threads,
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
    try:
        return tokenize_source(job, tokenizer, work, progress=progress)
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
    return tokenizer, work


def tokenize_source(job: Job, tokenizer: Tokenizer, work: Work, *, progress: Progress | None = None) -> Result:
    """Does what is left to do, with a tokenizer that is there."""
    source = job.source
    layout = Layout(work.views.count, tokenizer.num_tokens, source.labels)
    with Destination(job.destination, settings_of(source, tokenizer, work, job.format)) as destination:
        if progress is not None and destination.shards:
            progress(destination.images + destination.broken, destination.broken)
        if not destination.done:

            def write(shard: Shard) -> None:
                destination.add(shard, files_of(shard, job.format, layout))

            entries = source.entries(destination.position)
            shards = tokenize_entries(entries, tokenizer, work, first_shard=destination.shards, progress=progress)
            with ThreadPoolExecutor(1, "write") as writer:  # the device need not wait for the disk
                writing: Future[None] | None = None
                for shard in shards:
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(write, shard)
                if writing is not None:
                    writing.result()
            if destination.position == Position(0, 0):
                raise BulkError(f"there are no images in {source.name}")
            destination.finish(manifest_of)
        return Result(destination.images, destination.broken, destination.shards)
