"""Device memory: detect out-of-memory errors, release cached memory, and report usage."""

import contextlib
import gc

import torch

# Messages of the libraries behind torch. cuBLAS fails to initialise, and cuDNN finds no engine, where their workspace does
# not fit.
_MESSAGES = (
    "out of memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "unable to find an engine",
    "Unable to find a valid cuDNN algorithm",
    "can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a batch failed for lack of memory, so that a smaller one may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def release_memory(device: torch.device) -> None:
    """Returns cached, unused memory to the device."""
    gc.collect()
    if device.type == "cuda":
        # After a failed graph capture, PyTorch before 2.12 raises here every time.
        with torch.cuda.device(device), contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def memory_bytes(device: torch.device) -> dict[str, int] | None:
    """Bytes of a CUDA device: ``allocated`` by tensors, ``reserved`` by this process, and ``total``; None for a CPU."""
    if device.type != "cuda":
        return None
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
