"""Runs a job on a Ray cluster with Ray Data (extra ``ray``); the output is byte-identical to that of one machine.

::

    this process                          the cluster
    settings    <───────────────────────  a task that loads the models
    counts      <───────────────────────  a task per part of the source
    shard 0, 1, 2, ... as rows  ────────> an actor pool: each has the models, reads its shard's entries from the source,
                                          and makes the whole shard with the pipeline of one machine
    Destination <─ in any order, as files ─┘

Actors read the source, so all nodes must find it under the same name; only this process writes. If a node is lost, another
one makes its shards again from the same entries.
"""

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
import ray
import ray.data
import torch

from service.bulk.destination import Destination, MissingShards, Result
from service.bulk.entries import Part, Position
from service.bulk.errors import BulkError
from service.bulk.job import Job
from service.bulk.manifest import RunSettings
from service.bulk.pipeline import Progress, make_shards
from service.bulk.run import complete, with_resume_hint
from service.bulk.shards import Shard, shard_starts

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics

Columns = dict[str, npt.NDArray[Any]]
MadeShard = tuple[Shard, dict[str, bytes]]
"""A shard and its files."""


@dataclasses.dataclass(frozen=True)
class _ActorPool:
    """The number of actors, and the cores and GPUs of each."""

    actors: int
    cores: int
    gpus: int


def run_on_ray(job: Job[Any], address: str, *, actors: int = 0, progress: Progress | None = None) -> Result:
    """Makes the missing shards on the cluster at ``address`` (``auto``: the one this machine is part of; ``local``: one
    started here for this run). ``actors`` 0: one per GPU, or one per node if there is no GPU.

    Raises ``BulkError``, and what loading the models raises on a node.
    """
    job.check()
    with with_resume_hint(job), _connected(address), _unwrapped_errors():
        pool = _actor_pool(job, actors)
        job = dataclasses.replace(job, device="cuda" if pool.gpus else "cpu", threads=job.threads or pool.cores)
        settings = ray.get(ray.remote(num_cpus=pool.cores, num_gpus=pool.gpus)(_settings).remote(job, pool.cores))

        def make(destination: Destination) -> None:
            for shard, files in _shards(job, settings, pool, destination.missing):
                destination.add(shard, files)
                if progress is not None:
                    progress(len(shard.rows) + len(shard.broken), len(shard.broken))

        return complete(job, settings, make, progress=progress)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connects to a cluster, unless this process is connected already."""
    if ray.is_initialized():
        yield
        return
    dashboard = False if address == "local" else None  # a running cluster has its own setting
    try:
        ray.init(address=address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BulkError(f"cannot connect to a Ray cluster at {address}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _unwrapped_errors() -> Iterator[None]:
    """Raises an error of a node without Ray's wrapping, and an error of Ray itself as a ``BulkError``."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray: {error}; written shards are complete, run the same command again to resume") from error


def _actor_pool(job: Job[Any], actors: int) -> _ActorPool:
    """Divides the nodes' cores and GPUs among the actors."""
    if job.device not in ("auto", "cpu", "cuda"):
        raise BulkError(f"on Ray the device is auto, cpu or cuda, not {job.device}: Ray chooses the GPU of each actor")
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    with_gpus = [] if job.device == "cpu" else [node for node in alive if node.get("GPU", 0) >= 1]
    nodes = with_gpus or [node for node in alive if node.get("CPU", 0) >= 1]
    if job.device == "cuda" and not with_gpus:
        raise BulkError("no node of the Ray cluster has a GPU")
    if not nodes:
        raise BulkError("no node of the Ray cluster has a free core for an actor")
    actors = actors or (sum(int(node["GPU"]) for node in nodes) if with_gpus else len(nodes))
    cores = [int(node.get("CPU", 0)) for node in nodes]
    return _ActorPool(actors, max(1, min(sum(cores) // actors, *cores)), 1 if with_gpus else 0)


def _settings(job: Job[Any], cores: int) -> RunSettings:
    torch.set_num_threads(cores)
    return job.load().settings


def _shards(
    job: Job[Any], settings: RunSettings, pool: _ActorPool, missing: list[MissingShards]
) -> Iterator[MadeShard]:
    """The missing shards, as they become complete."""
    starts = list(_starts(job, missing))
    if not starts:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it warns about the missing progress bars
    context.execution_no_progress_timeout_s = -1  # a large shard may take an hour
    made = ray.data.from_items(starts, override_num_blocks=len(starts)).map_batches(
        ShardActor,
        fn_constructor_args=(job, settings, pool.cores),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(starts)), max_tasks_in_flight_per_actor=1),
        num_cpus=pool.cores,
        num_gpus=pool.gpus,
    )  # by default, Ray Data restarts the actors and shards of a lost node without limit
    for row in made.iter_rows():
        result: MadeShard | Exception = pickle.loads(row["result"])  # noqa: S301  made by our own actors
        if isinstance(result, Exception):
            raise result
        yield result


def _starts(job: Job[Any], missing: list[MissingShards]) -> Iterator[dict[str, int]]:
    """Number and start of each missing shard, as rows for ``ShardActor``."""
    first, start, _ = missing[0]
    wanted = {number for some in missing[:-1] for number in range(some.first, some.first + (some.shards or 0))}
    parts, count = job.source.parts[start.part :], ray.remote(num_cpus=1)(_count)
    # To count an archive, all of it must be read. One part is counted here: it may be a long list of files to send.
    counts = [parts[0].count()] if len(parts) == 1 else ray.get([count.remote(part) for part in parts])
    for number, position in enumerate(shard_starts(counts, start, job.shard_images), first):
        if number in wanted or number >= missing[-1].first:
            yield {"number": number, "part": position.part, "offset": position.offset}


def _count(part: Part[Any]) -> int:
    return part.count()


class ShardActor:
    """A Ray actor that makes whole shards."""

    def __init__(self, job: Job[Any], settings: RunSettings, cores: int) -> None:
        torch.set_num_threads(cores)
        self._task = job.load()
        if self._task.settings != settings:
            raise BulkError(
                f"{job.tokenizer} differs between nodes: install the same weights and version of titok-service on each"
            )

    def __call__(self, row: Columns) -> Columns:
        """``number``, ``part`` and ``offset`` of one shard -> ``result``: the shard and its files, or the exception that
        was raised, pickled, because Ray would wrap and log it.
        """
        number, part, offset = (int(row[name][0]) for name in ("number", "part", "offset"))
        try:
            result: MadeShard | Exception = self._made(number, Position(part, offset))
        except Exception as error:  # raised again by _shards
            result = error
        return {"result": np.array([pickle.dumps(result)], dtype=object)}

    def _made(self, number: int, start: Position) -> MadeShard:
        job = self._task.job
        (shard,) = make_shards(islice(job.source.entries(start), job.shard_images), self._task, first_shard=number)
        return shard, self._task.files(shard)
