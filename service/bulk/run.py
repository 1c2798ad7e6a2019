"""Runs a tokenization job from a source to a destination, and on this machine."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice

from models.runtime.cuda_graphs import CudaRecorder
from models.runtime.device_names import select_device
from models.tokenizer import Tokenizer, load_tokenizer
from service.bulk.destination import Destination, RunSettings
from service.bulk.errors import BulkError
from service.bulk.formats import check_format, files_of
from service.bulk.job import Job, Result
from service.bulk.manifest import manifest_of, settings_of
from service.bulk.pipeline import Progress, tokenize_entries
from service.bulk.shards import Shard
from service.inference.calibration import calibrate
from service.inference.memory_fit import largest_that_fits, record_graphs


def run_job(job: Job, *, progress: Progress | None = None) -> Result:
    """Makes the missing shards. Raises ``BulkError``, and what loading the tokenizer raises."""
    check_format(job.format)
    tokenizer, job = load_tokenizer_of(job)
    with with_resume_hint(job):
        return tokenize_source(job, tokenizer, progress=progress)


@contextmanager
def with_resume_hint(job: Job) -> Iterator[None]:
    """Turns an error of a file system into a ``BulkError`` that says how to resume."""
    try:
        yield
    except OSError as error:
        place = error.filename or f"{job.source.name} or {job.destination}"
        raise BulkError(
            f"{place}: {error.strerror or error}; written shards are complete, run the same command again to resume"
        ) from error


def load_tokenizer_of(job: Job) -> tuple[Tokenizer, Job]:
    """Loads the tokenizer on its device, prepared for batches of the job's size; the job has the device's defaults."""
    device = select_device(job.device)
    job = job.on(device.type)
    batch = job.batch_images * job.crops.count
    tokenizer = load_tokenizer(job.tokenizer, weights=job.weights, device=str(device), dtype=job.dtype)
    if device.type == "cpu":
        calibrate(tokenizer, batch, threads=1)  # each core encodes batches of its own
        return tokenizer, job
    limit = record_graphs(tokenizer.encoder, lambda limit: {1, limit}, batch, CudaRecorder(device), device)
    limit = largest_that_fits(partial(calibrate, tokenizer), limit, tokenizer.encoder, device)
    return tokenizer, replace(job, batch_size=limit)


def tokenize_source(job: Job, tokenizer: Tokenizer, *, progress: Progress | None = None) -> Result:
    """Makes the missing shards with a loaded tokenizer."""

    def make(destination: Destination) -> None:
        def write(shard: Shard) -> None:
            destination.add(shard, files_of(shard, job, tokenizer.num_tokens))

        with ThreadPoolExecutor(1, "write") as writer:  # so that the device does not wait for the disk
            writing: Future[None] | None = None
            for missing in destination.missing:
                entries = job.source.entries(missing.start)
                if missing.shards is not None:
                    entries = islice(entries, missing.shards * job.shard_images)
                for shard in tokenize_entries(entries, tokenizer, job, first_shard=missing.first, progress=progress):
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(write, shard)
            if writing is not None:
                writing.result()

    return complete(job, settings_of(job, tokenizer), make, progress=progress)


def complete(
    job: Job, settings: RunSettings, make: Callable[[Destination], None], *, progress: Progress | None = None
) -> Result:
    """Opens the destination, has ``make`` add all missing shards, and writes the manifest."""
    with Destination(job.destination, settings) as destination:
        earlier = destination.result
        if progress is not None and earlier.shards:
            progress(earlier.images + earlier.broken, earlier.broken)
        if not destination.done:
            make(destination)
            if not destination.result.shards:
                raise BulkError(f"there are no images in {job.source.name}")
            destination.finish(manifest_of)
        return destination.result
