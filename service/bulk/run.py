"""Runs a job from a source to a destination, and on this machine."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

from models.errors import NoImagesError
from service.bulk.destination import Destination, Result
from service.bulk.errors import BulkError
from service.bulk.job import Job, Task
from service.bulk.manifest import RunSettings
from service.bulk.pipeline import Progress, make_shards
from service.bulk.shards import Shard


def run_job(job: Job[Any], *, progress: Progress | None = None) -> Result:
    """Makes the missing shards. Raises ``BulkError``, and what loading the models raises."""
    job.check()
    task = job.load()
    with with_resume_hint(job):
        return run_task(task, progress=progress)


@contextmanager
def with_resume_hint(job: Job[Any]) -> Iterator[None]:
    """Turns an error of a file system into a ``BulkError`` that says how to resume."""
    try:
        yield
    except OSError as error:
        place = error.filename or f"{job.source.name} or {job.destination}"
        raise BulkError(
            f"{place}: {error.strerror or error}; written shards are complete, run the same command again to resume"
        ) from error


def run_task(task: Task[Any, Any, Any], *, progress: Progress | None = None) -> Result:
    """Makes the missing shards with loaded models."""
    job = task.job

    def make(destination: Destination) -> None:
        def write(shard: Shard) -> None:
            destination.add(shard, task.files(shard))

        with ThreadPoolExecutor(1, "write") as writer:  # so that the device does not wait for the disk
            writing: Future[None] | None = None
            for missing in destination.missing:
                entries = job.source.entries(missing.start)
                if missing.shards is not None:
                    entries = islice(entries, missing.shards * job.shard_images)
                for shard in make_shards(entries, task, first_shard=missing.first, progress=progress):
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(write, shard)
            if writing is not None:
                writing.result()

    return complete(job, task.settings, make, progress=progress)


def complete(
    job: Job[Any], settings: RunSettings, make: Callable[[Destination], None], *, progress: Progress | None = None
) -> Result:
    """Opens the destination, has ``make`` add all missing shards, and writes the manifest."""
    with Destination(job.destination, settings) as destination:
        earlier = destination.result
        if progress is not None and earlier.shards:
            progress(earlier.images + earlier.broken, earlier.broken)
        if not destination.done:
            make(destination)
            if not destination.result.shards:
                raise NoImagesError(job.source.name)
            destination.finish(job.views, job.merges)
        return destination.result
