"""Data-parallel training: one process per device, started by ``torchrun``, with averaged gradients.

Every process draws the same random numbers for the whole batch and uses its own rows, so the results do not depend on
the number of processes, up to rounding.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

_TIMEOUT = timedelta(minutes=10)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group that ``torchrun`` set up; does nothing in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def own_rows(count: int) -> slice:
    """This process's share of ``count`` rows, which are a multiple of the number of processes."""
    share = count // world_size()
    first = share * (distributed.get_rank() if distributed.is_initialized() else 0)
    return slice(first, first + share)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over the processes, with one all-reduce."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not distributed.is_initialized() or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, averaged in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


@torch.no_grad()
def mean_of(value: Tensor) -> Tensor:
    """The mean of ``value`` over the processes."""
    if not distributed.is_initialized():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def all_rows(own: Tensor) -> Tensor:
    """Concatenates the rows [B, ...] of all processes, equally many each, in the order of the whole batch."""
    if not distributed.is_initialized():
        return own
    parts = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)
