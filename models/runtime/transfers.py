"""Batches between the host and a device: uint8 and ids only, on streams of their own, so that copies overlap with work.

::

    host, pinned ── upload stream ──> device ── the thread's stream: compute ── download stream ──> host, pinned
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["CudaTransfers", "HostTransfers", "PendingResults", "Transfers", "pin", "transfers_for"]

PendingResults = Callable[[], tuple[Tensor, ...]]
"""Waits until results are on the host, and gives them."""


Compute = Callable[[Tensor], tuple[Tensor, ...]]


class Transfers(Protocol):
    """Takes batches to one device, and results from it."""

    def run(self, host: Tensor, compute: Compute, into: Tensor | None = None) -> PendingResults:
        """Begins to copy a tensor of the host to the device, to compute there, and to copy the results to the host: the
        first of them ``into`` a tensor if one is given, or new. ``host`` must stay as it is until they have arrived.
        """


class HostTransfers:
    """The device is the host: there is nothing to copy."""

    def run(self, host: Tensor, compute: Compute, into: Tensor | None = None) -> PendingResults:
        """See ``Transfers``."""
        first, *others = compute(host)
        arrived = (first if into is None else into.copy_(first), *others)
        return lambda: arrived


class CudaTransfers:
    """Copies on two streams of their own; from pinned memory they do not wait for the thread, nor it for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, host: Tensor, compute: Compute, into: Tensor | None = None) -> PendingResults:
        """See ``Transfers``."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            copied = host.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        try:
            results = compute(copied)
        except BaseException:
            computing.synchronize()  # what was launched reads ``copied``, whose memory is about to be anyone's
            raise
        self._down.wait_stream(computing)
        with torch.cuda.stream(self._down):
            # New memory is from PyTorch's cache of pinned memory, and returns there when the caller is done with it.
            arriving = [
                into
                if into is not None and index == 0
                else torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                for index, result in enumerate(results)
            ]
            for place, result in zip(arriving, results, strict=True):
                place.copy_(result, non_blocking=True)
            # Waits asleep: the core that a spinning thread would take decodes images.
            arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            arrived.record(self._down)
        return _Arrival(arrived, (host, copied, *results), tuple(arriving))


class _Arrival:
    """Results on their way, and what they are made of: streams do not know of each other's memory, so that it must not be
    given back before the last copy is done, whether somebody waits for it or not.
    """

    def __init__(self, arrived: torch.cuda.Event, held: tuple[Tensor, ...], arriving: tuple[Tensor, ...]) -> None:
        self._arrived = arrived
        self._held = held
        self._arriving = arriving

    def __call__(self) -> tuple[Tensor, ...]:
        self._arrived.synchronize()
        self._held = ()
        return self._arriving

    def __del__(self) -> None:
        if self._held:
            self._arrived.synchronize()


def transfers_for(device: torch.device) -> Transfers:
    """Copies to and from ``device``."""
    return CudaTransfers(device) if device.type == "cuda" else HostTransfers()


def pin(array: npt.NDArray[Any], device: torch.device) -> Callable[[], None]:
    """Page-locks a contiguous array (of shared memory, say), so that copies to and from ``device`` are direct.

    It stays so until what this gives is called, or the memory's last array is gone. Does nothing for a CPU. Raises
    ``RuntimeError`` where the system refuses, ``ValueError`` for an array with gaps.
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
            with contextlib.suppress(RuntimeError):  # it would be taken for an error of the next kernel
                torch.zeros(1, device=device)
            raise RuntimeError(f"{array.nbytes} bytes cannot be pinned: CUDA error {error}")
    unpin = weakref.finalize(memory_of(array), runtime.cudaHostUnregister, address)
    unpin.atexit = False  # the process takes its memory along
    return unpin


def memory_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array whose memory an array is a part of: it lives as long as any part."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process
