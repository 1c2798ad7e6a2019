"""Copies of batches between host and device, on separate streams so that they overlap with computation.

::

    host, pinned ── upload stream ──> device ── the thread's stream: compute ── download stream ──> host, pinned
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Compute: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]
"""A function of a batch [B, ...] that returns tensors [B, ...]."""

PendingResults: TypeAlias = Callable[[], tuple[Tensor, ...]]
"""Waits until results are on the host, and returns them."""


class HostTransfers:
    """Computes on the host: nothing is copied."""

    def run(self, host: Tensor, compute: Compute, into: Tensor | None = None) -> PendingResults:
        """See :meth:`CudaTransfers.run`."""
        first, *others = compute(host)
        results = (first if into is None else into.copy_(first), *others)
        return lambda: results


class CudaTransfers:
    """Copies on two CUDA streams. From pinned memory they are asynchronous to the calling thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._upload = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._download = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, host: Tensor, compute: Compute, into: Tensor | None = None) -> PendingResults:
        """Starts to copy a host tensor to the device, to compute there, and to copy the results to the host.

        The first result is written to ``into`` if given. ``host`` must not change until the results have arrived.
        """
        stream = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._upload):
            inputs = host.to(self._device, non_blocking=True)
        stream.wait_stream(self._upload)
        try:
            results = compute(inputs)
        except BaseException:
            stream.synchronize()  # launched kernels read ``inputs``, whose memory is about to be reused
            raise
        self._download.wait_stream(stream)
        with torch.cuda.stream(self._download):
            # New memory comes from PyTorch's cache of pinned memory, and returns to it.
            copies = [
                into
                if into is not None and index == 0
                else torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                for index, result in enumerate(results)
            ]
            for copy, result in zip(copies, results, strict=True):
                copy.copy_(result, non_blocking=True)
            # A blocking event sleeps: a spinning thread would take a core from image decoding.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._download)
        return _PendingCopy(done, (host, inputs, *results), tuple(copies))


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``.

    To a CUDA device it is copied from pinned memory: a copy from other memory waits until all work launched before is done.
    """
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def transfers_for(device: torch.device) -> CudaTransfers | HostTransfers:
    """The implementation for ``device``."""
    return CudaTransfers(device) if device.type == "cuda" else HostTransfers()


class _PendingCopy:
    """Results being copied, and the tensors they depend on.

    Streams do not know of each other's memory, so these tensors are kept until the last copy is done, even if nobody
    waits for it.
    """

    def __init__(self, done: torch.cuda.Event, held: tuple[Tensor, ...], copies: tuple[Tensor, ...]) -> None:
        self._done = done
        self._held = held
        self._copies = copies

    def __call__(self) -> tuple[Tensor, ...]:
        self._done.synchronize()
        self._held = ()
        return self._copies

    def __del__(self) -> None:
        if self._held:
            self._done.synchronize()


def pin(array: NDArray[Any], device: torch.device) -> Callable[[], None]:
    """Page-locks a contiguous array (for example shared memory), so that copies to and from ``device`` are direct.

    The returned function undoes it; so does the end of the array's memory. Does nothing for a CPU. Raises
    ``RuntimeError`` if the system refuses, ``ValueError`` for a non-contiguous array.
    """
    if device.type != "cuda":
        return lambda: None
    if not array.flags.c_contiguous:
        raise ValueError("only a contiguous array can be pinned")
    address: int = array.__array_interface__["data"][0]
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        error = int(runtime.cudaHostRegister(address, array.nbytes, _PORTABLE))
        if error:
            with contextlib.suppress(RuntimeError):  # clears the error, which the next kernel would report
                torch.zeros(1, device=device)
            raise RuntimeError(f"{array.nbytes} bytes cannot be pinned: CUDA error {error}")
    unpin = weakref.finalize(base_array(array), runtime.cudaHostUnregister, address)
    unpin.atexit = False  # the process releases its memory anyway
    return unpin


def base_array(array: NDArray[Any]) -> NDArray[Any]:
    """The array that owns the memory of a view. It lives as long as any of its views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all contexts of the process
