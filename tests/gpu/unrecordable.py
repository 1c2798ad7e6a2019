"""A function that no CUDA graph can be recorded of, since it waits for the device, is called instead.

A program of its own (``python -m tests.gpu.unrecordable``): PyTorch before 2.12 does not recover its memory from this. With
the name of the fake device as its argument it runs there.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch

from models.runtime.cuda_graphs import CudaRecorder, GraphedFunction
from tests.fake_cuda import FAKE_NAME, FakeCuda

__all__ = ["main"]


def main() -> None:
    """Prints ``not recorded``. Raises ``AssertionError`` if the function's results or the current stream are wrong."""
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    function = GraphedFunction(_waiting, example=lambda size: torch.ones(size, 2, device=device))
    stream = torch.cuda.current_stream()
    try:
        function.record([2], CudaRecorder(device))
    except RuntimeError:
        print("not recorded")
    assert torch.cuda.current_stream() == stream
    assert function(torch.ones(2, 2, device=device))[0].tolist() == [[4.0, 4.0], [4.0, 4.0]]


def _waiting(inputs: torch.Tensor) -> tuple[torch.Tensor]:
    return (inputs * float(inputs.sum().item()),)


if __name__ == "__main__":
    with FakeCuda() if sys.argv[1:] == [FAKE_NAME] else nullcontext():
        main()
