"""A function of a batch, replayed as a CUDA graph: recorded at a few batch sizes, and padded to the next of them.

::

    inputs [n, ..] ── copy ──> static inputs [m, ..] ── replay ──> static outputs [m, ..] ── clone ──> [n, ..]
                               m: the smallest recorded size >= n; the rest of the rows is whatever was there before

A replay launches every kernel of the batch with one call, where Python takes longer to launch small ones than they take to
run. Rows of a batch do not see each other, so what the padding holds does not matter. With a recorder that only calls the
function, all of this runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["CudaRecorder", "GraphedFunction", "Recorder", "Recording"]


class Recording(NamedTuple):
    """``replay`` computes the same again from the same memory into ``outputs``."""

    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


class Recorder(Protocol):
    """Records what a function of no arguments does on the device."""

    def __call__(self, function: Callable[[], tuple[Tensor, ...]]) -> Recording:
        """Runs it, and keeps what it did."""


class CudaRecorder:
    """Records CUDA graphs, in the thread that will replay them, one at a time.

    All graphs of a recorder share their memory for intermediate results, which is sound because they are replayed on one
    stream, one after another, and each one's outputs stay its own as long as it lives.
    """

    _WARM_UPS = 2

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], tuple[Tensor, ...]]) -> Recording:
        """Runs the function on a side stream, then records it there. Raises ``RuntimeError`` where that cannot be done."""
        current = torch.cuda.current_stream(self._device)
        # Entered although it is current already: a recording that fails leaves its own stream behind as the current one.
        with torch.cuda.stream(current):
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                # Libraries choose their kernels and allocate their workspaces with the first call: not in a recording.
                for _ in range(self._WARM_UPS):
                    function()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Another thread's CUDA calls (pinning memory, say) are no reason for this thread's recording to fail.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function()
        return Recording(graph.replay, outputs)


class _Graph(NamedTuple):
    inputs: Tensor
    recording: Recording


class GraphedFunction:
    """``function(inputs, *static)`` takes a tensor, batch first, and whole numbers that shape what it does; it gives
    tensors, batch first. It is called at once where nothing is recorded that fits.

    ``example(size)`` gives inputs of a batch size, on the device; ``variants(size)`` the numbers to record it with.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *,
        example: Callable[[int], Tensor],
        variants: Callable[[int], Sequence[tuple[int, ...]]] = lambda _: [()],
    ) -> None:
        self._function = function
        self._example = example
        self._variants = variants
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    @property
    def sizes(self) -> list[int]:
        """Batch sizes that are recorded, ascending."""
        return sorted({size for size, *_ in self._graphs})

    def padded(self, size: int) -> int:
        """The batch size that ``size`` rows are run at."""
        return next((recorded for recorded in self.sizes if recorded >= size), size)

    @torch.inference_mode()
    def record(self, sizes: Iterable[int], recorder: Recorder) -> None:
        """Records the function at some batch sizes, the largest first: smaller ones then find memory for themselves in
        what it needed. Raises what the recorder raises; what was recorded by then stays.
        """
        descending = sorted(sizes, reverse=True)
        inputs = self._example(descending[0])
        for size in descending:
            for static in self._variants(size):
                rows = inputs[:size]
                self._graphs[(size, *static)] = _Graph(rows, recorder(partial(self._function, rows, *static)))

    def forget(self, above: int = 0) -> None:
        """Drops what is recorded at batch sizes larger than ``above``; memory that smaller ones share stays."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] <= above}

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, *static: int) -> tuple[Tensor, ...]:
        """The function's outputs, in memory of their own."""
        graph = self._graphs.get((self.padded(len(inputs)), *static))
        if graph is None:
            return self._function(inputs, *static)
        graph.inputs[: len(inputs)].copy_(inputs)
        graph.recording.replay()
        return tuple(output[: len(inputs)].clone() for output in graph.recording.outputs)
