"""How long a batch takes its device, on a machine that may be doing other things as well."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from models.runtime.cpu_threads import torch_threads

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["cpu_seconds", "wall_seconds"]

Run = Callable[[], object]


def wall_seconds(run: Run) -> float:
    """Seconds by the clock."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def cpu_seconds(run: Run) -> float:
    """Seconds that a run would take on its CPU threads if nothing else wanted the cores.

    Those by the clock, unless the kernel gave a core to others meanwhile. Then threads wait for each other at every
    parallel region, up to a hundred times as long as they work, so the run is done again by one thread, and its processor
    time is shared among them.
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
