"""One process a device: the same step everywhere, gradients averaged. ``torchrun`` starts the processes.

Every process draws the same random numbers for the whole batch and takes its own rows of it, so a run gives the same
numbers, up to rounding, however many processes share it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

__all__ = ["all_rows", "average_gradients", "is_main", "mean_of", "own_rows", "process_group", "world_size"]

_PATIENCE = timedelta(minutes=10)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, for as long as the context lasts; alone otherwise."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """Processes that share the run."""
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
    """Replaces every gradient by its mean over the processes, in one exchange."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
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
    """The rows [B, ...] of all processes, in the order of the whole batch; every process has as many."""
    if not distributed.is_initialized():
        return own
    parts = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)
