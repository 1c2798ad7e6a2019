"""Measures the duration of a batch, also on a machine that is busy with other processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from models.runtime.cpu_threads import torch_threads

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Run = Callable[[], object]


def wall_seconds(run: Run) -> float:
    """Elapsed wall-clock seconds of a run."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def cpu_seconds(run: Run) -> float:
    """Seconds that a run would take on its CPU threads if no other process used the cores.

    This is the elapsed time, unless the kernel preempted this process. A preempted thread makes all others wait at every
    parallel region, up to a hundred times longer than they work; then the run is repeated by one thread, and its CPU time is
    divided by the number of threads.
    """
    before = _preemptions()
    elapsed = wall_seconds(run)
    if _preemptions() == before:
        return elapsed
    threads = torch.get_num_threads()
    with torch_threads(1):
        begun = time.process_time()
        run()
        return min(elapsed, (time.process_time() - begun) / threads)


def _preemptions() -> int:
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
