"""A device's memory: whether an error means that there is none left, how to get some back, how much is in use."""

from __future__ import annotations

import contextlib
import gc

import torch

__all__ = ["is_out_of_memory", "memory_bytes", "release_memory"]

# The libraries behind torch report a full device in words of their own.
_MESSAGES = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch failed for want of memory, so that a smaller one may do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def release_memory(device: torch.device) -> None:
    """Gives back what is cached and not in use."""
    gc.collect()
    if device.type == "cuda":
        # PyTorch before 2.12 never clears its cache again once a graph could not be recorded.
        with torch.cuda.device(device), contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def memory_bytes(device: torch.device) -> dict[str, int] | None:
    """Bytes of a CUDA device that tensors use (``allocated``), that this process holds (``reserved``), and that it has
    (``total``); None for a CPU.
    """
    if device.type != "cuda":
        return None
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
