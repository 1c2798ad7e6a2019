"""A stand-in for CUDA graphs, which runs anywhere."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.runtime.cuda_graphs import Recording

__all__ = ["CallingRecorder"]


class CallingRecorder:
    """Keeps what a CUDA graph promises, outputs in memory of their own computed again from the inputs' memory, by calling
    the function. It has memory for batches of ``fits`` images, or cannot record at all and ``fails`` saying why.
    """

    def __init__(self, *, fits: int = 1000, fails: str | None = None) -> None:
        self.fits, self.fails = fits, fails
        self.recorded: list[int] = []
        self.replays = 0

    def __call__(self, function: Callable[[], tuple[torch.Tensor, ...]]) -> Recording:
        if self.fails is not None:
            raise RuntimeError(self.fails)
        outputs = function()
        self.recorded.append(len(outputs[0]))
        if len(outputs[0]) > self.fits:
            raise torch.OutOfMemoryError

        def replay() -> None:
            self.replays += 1
            for output, computed in zip(outputs, function(), strict=True):
                output.copy_(computed)

        return Recording(replay, outputs)
