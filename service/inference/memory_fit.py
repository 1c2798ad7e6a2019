"""Runs something with as large a batch as fits into a device's memory, and records CUDA graphs so."""

import logging
from collections.abc import Callable, Iterable

import torch

from models.runtime.cuda_graphs import GraphedFunction, Recorder
from models.runtime.device_memory import is_out_of_memory, release_memory

log = logging.getLogger(__name__)


def largest_that_fits(run: Callable[[int], object], limit: int, function: GraphedFunction, device: torch.device) -> int:
    """Calls ``run(limit)``; after a lack of memory again with half the limit, without the function's graphs above it.

    Returns the limit that fitted. Raises what ``run`` raises, for a lack of memory only at a limit of 1.
    """
    while True:
        try:
            run(limit)
        except Exception as error:
            if not is_out_of_memory(error) or limit == 1:
                raise
        else:
            return limit
        # After the except block: within it the traceback holds the tensors of the run that failed.
        log.warning("batches of %d images do not fit into memory; the limit is now %d", limit, limit // 2)
        limit //= 2
        function.discard(above=limit)
        release_memory(device)


def record_graphs(
    function: GraphedFunction,
    sizes: Callable[[int], Iterable[int]],
    limit: int,
    recorder: Recorder,
    device: torch.device,
) -> int:
    """Records the batch sizes ``sizes(limit)``, of a smaller limit if they do not fit into memory; returns that limit.

    Leaves the function without graphs, with a warning, if it cannot be recorded at all.
    """
    try:
        return largest_that_fits(lambda limit: function.record(sizes(limit), recorder), limit, function, device)
    except RuntimeError as error:
        log.warning("no CUDA graphs (%s): kernels are launched one by one, which is slower", error)
        function.discard()
        return limit
