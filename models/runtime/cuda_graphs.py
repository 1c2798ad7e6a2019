"""CUDA graphs of a batch function, recorded at a few batch sizes; other batches are padded to the next recorded size.

::

    inputs [n, ..] ── copy ──> static inputs [m, ..] ── replay ──> static outputs [m, ..] ── clone ──> [n, ..]
                               m: the smallest recorded size >= n; padding rows keep old values

A replay launches all kernels of a batch with one call; launched from Python, small kernels take longer to launch than to
run. Rows of a batch are independent of each other, so the values of padding rows do not matter.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Recording(NamedTuple):
    """``replay`` runs the recorded kernels again, from the same input memory into ``outputs``."""

    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


Recorder: TypeAlias = Callable[[Callable[[], tuple[Tensor, ...]]], Recording]
"""Runs a function without arguments and records the kernels that it launches."""


class CudaRecorder:
    """Records CUDA graphs. Recording and replay must happen in the same thread.

    A graph captures addresses and the values of Python's numbers. Those of the recorded functions may be captured:

    - the inputs: static memory that ``GraphedFunction`` keeps and copies each batch to;
    - the outputs: memory of the graph, read before the next replay;
    - intermediate results: memory that all graphs of a recorder share, since they are replayed on one stream, one after
      another, and the outputs of each graph are not shared;
    - weights, codebook and buffers: never replaced nor moved after the network has been loaded;
    - the parts of the weights for ``tf32x3``: made in the warm-up, kept by ``ThreePassLinear``;
    - workspaces of cuBLAS and cuDNN: allocated in the warm-up, kept by the process for the stream of the recording;
    - batch size, number of guided rows, exactness, presence of padded codes: part of the key of a graph. How many tokens a
      padded code has is not captured: it follows from the ids, on the device;
    - numbers of the network and the mask token: constants of the model. Labels, seeds, steps, guidance and temperature
      are not captured: they are columns of the inputs.

    No random number is drawn on the device.
    """

    _WARM_UPS = 2

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], tuple[Tensor, ...]]) -> Recording:
        """Runs the function on a side stream, then records it. Raises ``RuntimeError`` if it cannot be recorded."""
        current = torch.cuda.current_stream(self._device)
        # Restores the current stream: a failed recording leaves its own stream as the current one.
        with torch.cuda.stream(current):
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                # Libraries choose kernels and allocate workspaces in the first call, which must not be recorded.
                try:
                    for _ in range(self._WARM_UPS):
                        function()
                finally:
                    current.wait_stream(self._stream)  # also after an error: the inputs may be released then
            graph = torch.cuda.CUDAGraph()
            # Other threads may make CUDA calls (for example to pin memory) without invalidating the recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function()
        return Recording(graph.replay, outputs)


class _Graph(NamedTuple):
    inputs: Tensor
    recording: Recording


class GraphedFunction:
    """A batch function that replays a recorded graph if one fits, and is called directly otherwise.

    ``function(inputs, *static)`` takes a tensor [B, ...] and integers that select a variant, and returns tensors
    [B, ...]. ``example(size)`` creates inputs on the device; ``variants(size)`` lists the ``static`` to record.
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
        """The recorded batch sizes, ascending."""
        return sorted({size for size, *_ in self._graphs})

    def padded(self, size: int) -> int:
        """The batch size at which ``size`` rows run."""
        return next((recorded for recorded in self.sizes if recorded >= size), size)

    @torch.inference_mode()
    def record(self, sizes: Iterable[int], recorder: Recorder) -> None:
        """Records the function at batch sizes in descending order, so that smaller ones reuse the memory of larger ones.

        Raises what the recorder raises; earlier recordings stay.
        """
        descending = sorted(sizes, reverse=True)
        inputs = self._example(descending[0])
        for size in descending:
            for static in self._variants(size):
                rows = inputs[:size]
                self._graphs[(size, *static)] = _Graph(rows, recorder(partial(self._function, rows, *static)))

    def discard(self, above: int = 0) -> None:
        """Deletes the recordings at batch sizes larger than ``above``; memory shared with smaller ones stays."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] <= above}

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, *static: int) -> tuple[Tensor, ...]:
        """The function's outputs, in newly allocated memory."""
        graph = self._graphs.get((self.padded(len(inputs)), *static))
        if graph is None:
            return self._function(inputs, *static)
        graph.inputs[: len(inputs)].copy_(inputs)
        graph.recording.replay()
        return tuple(output[: len(inputs)].clone() for output in graph.recording.outputs)
