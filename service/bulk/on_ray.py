"""The same run on many machines, by Ray Data (extra ``ray``); what it leaves is what one machine would have left.

::

    this process                          the cluster
    settings    <───────────────────────  a task that opens the tokenizer
    counts      <───────────────────────  a task a part of the source
    shard 0, 1, 2, ... as rows  ────────> an actor pool: each has a tokenizer, reads its shard's stretch of the source,
                                          and makes all of the shard with the pipeline of one machine
    Destination <─ in any order, as files ─┘

Actors read the source, so it must be where all nodes find it under one name; only this process writes. A shard that a node
took with it is made again by another one, from the same stretch of the source.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.errors import missing_package
from service.bulk.destination import Destination, Gap, Settings
from service.bulk.entries import Part, Position
from service.bulk.errors import BulkError
from service.bulk.formats import Layout, check_format, files_of
from service.bulk.manifest import settings_of
from service.bulk.pipeline import tokenize_entries
from service.bulk.run import Job, Result, fill, open_device, told_to_go_on
from service.bulk.shard_plan import shard_starts
from service.bulk.shards import ShardFiles
from service.bulk.work import Progress

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to be sent anywhere

try:
    import ray
    import ray.data
except ModuleNotFoundError as missing:
    raise BulkError(missing_package(missing, "ray")) from None

__all__ = ["Tokenizing", "run_on_ray"]

Columns = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class _Share:
    """How many actors there are, and what each has to itself."""

    actors: int
    cores: int
    gpus: int


def run_on_ray(job: Job, address: str, *, actors: int = 0, progress: Progress | None = None) -> Result:
    """Does what is left to do, on the cluster at ``address`` (``auto``: the one this machine is part of; ``local``: one
    that is started here for this run). ``actors`` of 0 are one a GPU, or one a node where there are none to use.

    Raises ``BulkError``, and what loading the tokenizer raises on a node.
    """
    check_format(job.format)
    with told_to_go_on(job), _connected(address), _causes():
        share = _share_of(job, actors)
        job = dataclasses.replace(job, device="cuda" if share.gpus else "cpu", threads=job.threads or share.cores)
        settings = ray.get(_remote(_settings, share).remote(job, share.cores))

        def make(destination: Destination) -> None:
            for shard in _shards(job, settings, share, destination.gaps):
                destination.add(shard)
                if progress is not None:
                    progress(shard.images + len(shard.broken), len(shard.broken))

        return fill(job, settings, make, progress=progress)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A program that has a connection keeps it."""
    if ray.is_initialized():
        yield
        return
    dashboard = False if address == "local" else None  # that of a cluster that is there is not ours to say
    try:
        ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BulkError(f"no Ray cluster answers at {address}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _causes() -> Iterator[None]:
    """What was raised on a node is raised here, without Ray's wrapping; what Ray itself cannot do is a ``BulkError``."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray: {error}; what is written is whole, and the same command goes on") from error


def _share_of(job: Job, actors: int) -> _Share:
    """The nodes' cores and GPUs, divided by the actors."""
    if job.device not in ("auto", "cpu", "cuda"):
        raise BulkError(f"on Ray the device is auto, cpu or cuda, not {job.device}: Ray chooses which GPU is whose")
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with_gpus = [] if job.device == "cpu" else [node for node in alive if node.get("GPU", 0) >= 1]
    nodes = with_gpus or [node for node in alive if node.get("CPU", 0) >= 1]
    if job.device == "cuda" and not with_gpus:
        raise BulkError("no node of the Ray cluster has a GPU")
    if not nodes:
        raise BulkError("no node of the Ray cluster has a core to spare for an actor")
    actors = actors or (sum(int(node["GPU"]) for node in nodes) if with_gpus else len(nodes))
    cores = [int(node.get("CPU", 0)) for node in nodes]
    return _Share(actors, max(1, min(sum(cores) // actors, *cores)), 1 if with_gpus else 0)


def _remote(function: Any, share: _Share) -> Any:
    return ray.remote(num_cpus=share.cores, num_gpus=share.gpus)(function)


def _settings(job: Job, cores: int) -> Settings:
    torch.set_num_threads(cores)
    tokenizer, work = open_device(job)
    return settings_of(job.source, tokenizer, work, job.format)


def _shards(job: Job, settings: Settings, share: _Share, gaps: list[Gap]) -> Iterator[ShardFiles]:
    """What is missing, as it is made."""
    missing = list(_missing(job, gaps))
    if not missing:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns of having no bars, and tells of its success
    context.execution_no_progress_timeout_s = -1  # a large shard may take an hour
    stretches = ray.data.from_items(missing, override_num_blocks=len(missing))
    made = stretches.map_batches(
        Tokenizing,
        fn_constructor_args=(job, settings, share.cores),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(share.actors, len(missing)), max_tasks_in_flight_per_actor=1),
        num_cpus=share.cores,
        num_gpus=share.gpus,
    )  # by Ray Data's defaults, actors and shards that go with a node are made again as often as it takes
    for row in made.iter_rows():
        result: ShardFiles | Exception = pickle.loads(row["result"])  # noqa: S301  made by our own actors
        if isinstance(result, Exception):
            raise result
        yield result


def _missing(job: Job, gaps: list[Gap]) -> Iterator[dict[str, int]]:
    first, start, _ = gaps[0]
    wanted = {number for gap in gaps[:-1] for number in range(gap.first, gap.first + (gap.shards or 0))}
    counts = _counts(job.source.parts[start.part :])
    for number, position in enumerate(shard_starts(counts, start, job.shard_images), first):
        if number in wanted or number >= gaps[-1].first:
            yield {"number": number, "part": position.part, "offset": position.offset}


def _counts(parts: tuple[Part, ...]) -> list[int]:
    """How many entries each part has; to know that of an archive, all of it must be read."""
    if len(parts) == 1:
        return [parts[0].count()]
    count = ray.remote(num_cpus=1)(_count)
    counts: list[int] = ray.get([count.remote(part) for part in parts])
    return counts


def _count(part: Part) -> int:
    return part.count()


class Tokenizing:
    """An actor: makes whole shards of stretches of the source."""

    def __init__(self, job: Job, settings: Settings, cores: int) -> None:
        torch.set_num_threads(cores)
        self._job = job
        self._tokenizer, self._work = open_device(job)
        if settings_of(job.source, self._tokenizer, self._work, job.format) != settings:
            raise BulkError(
                f"{job.tokenizer} is not the same on all nodes: give each the same weights and version of titok-service"
            )
        self._layout = Layout(self._work.views.count, self._tokenizer.num_tokens, job.source.labels)

    def __call__(self, stretch: Columns) -> Columns:
        """``number``, ``part`` and ``offset`` of one shard -> ``result``, pickled: its ``ShardFiles``, or what was raised,
        which Ray would wrap and log as a fault of its own.
        """
        number, part, offset = (int(stretch[name][0]) for name in ("number", "part", "offset"))
        try:
            result: ShardFiles | Exception = self._files(number, Position(part, offset))
        except Exception as error:  # raised again where the run was asked for
            result = error
        return {"result": np.array([pickle.dumps(result)], dtype=object)}

    def _files(self, number: int, start: Position) -> ShardFiles:
        entries = islice(self._job.source.entries(start), self._work.shard_images)
        (shard,) = tokenize_entries(entries, self._tokenizer, self._work, first_shard=number)
        return files_of(shard, self._job.format, self._layout)
