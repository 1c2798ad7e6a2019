"""CUDA graphs of the fake device: operators are recorded with their tensors, and replayed on the same memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from tests.fake_cuda.device import FakeCuda
    from tests.fake_cuda.order import Stream


class Graph:
    """As ``torch.cuda.CUDAGraph``."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake
        self._operators: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._read: list[Tensor] = []
        self._written: list[Tensor] = []

    def record(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor], new: list[Tensor]) -> None:
        """An operator during the recording."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._operators.append((func, args, kwargs, outputs))
        self._read += [each for each in inputs if not any(each is mine for mine in self._written)]
        self._written += new

    def discard_results(self) -> None:
        """A recording computes nothing: the memory of its results holds anything."""
        with torch.inference_mode(), self._fake.off():
            for tensor in self._written:
                torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(0xA5)

    def replay(self) -> None:
        """Runs the operators on the current stream."""
        self._fake.access(self._read, self._written, "a replay")
        with torch.inference_mode(), self._fake.off():
            for func, args, kwargs, outputs in self._operators:
                found = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
                for output, value in zip(outputs, found, strict=True):
                    if output.data_ptr() != value.data_ptr():
                        output.copy_(value)


@contextlib.contextmanager
def run_graph_context(
    fake: FakeCuda, graph: Graph, *, pool: Any = None, stream: Stream, capture_error_mode: str = "global"
) -> Iterator[None]:
    """As ``torch.cuda.graph``."""
    fake._wait_for_all()
    fake.graph = graph
    try:
        with fake.using(stream):
            yield
    finally:
        fake.graph = None
    graph.discard_results()
