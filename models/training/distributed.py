"""Data-parallel training: one process per device, started by ``torchrun``, with averaged gradients.

Every process draws the same random numbers for the whole batch and uses its own rows, so the results do not depend on
the number of processes, up to rounding; except dropout, which each process draws for itself. What steers the loop is
exchanged between hosts' memories, so that no process waits for its device.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_TIMEOUT = timedelta(minutes=10)


class ProcessFailed(Exception):
    """Another process of the run has failed, and printed why."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group that ``torchrun`` set up; does nothing in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes the files."""
    return rank() == 0


def own_rows(count: int) -> slice:
    """This process's share of ``count`` rows, which are a multiple of the number of processes."""
    share = count // world_size()
    first = share * rank()
    return slice(first, first + share)


def largest_of(*values: float) -> list[float]:
    """The largest of each value over the processes."""
    if not distributed.is_initialized():
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return shared.tolist()


def raise_together(failure: Exception | None) -> None:
    """Raises ``failure``, and :class:`ProcessFailed` where another process has one: otherwise it would be waited for."""
    (failed,) = largest_of(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise ProcessFailed("another process of this run failed; its message says why")


class Objective(nn.Module):
    """``losses``, a function that computes with ``network``, as a module: DistributedDataParallel takes nothing else."""

    def __init__(self, network: nn.Module, losses: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.network = network
        self._losses = losses

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        """The losses; only ``loss`` has gradients."""
        losses = self._losses(*arguments)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


def data_parallel(objective: Objective) -> nn.Module:
    """The objective with gradients that are averaged over the processes while its backward pass runs."""
    if not distributed.is_initialized():
        return objective
    # Some parameters have no gradient in some steps: the codes, before latents are quantized.
    return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)


def accumulate_gradients(objective: nn.Module, parts: Sequence[tuple[Any, ...]]) -> dict[str, Tensor]:
    """Adds the gradients of the mean loss of ``objective(*part)`` over the parts; returns the means of all its losses.

    Gradients are averaged over the processes during the last backward pass. If a process fails before that, all raise.
    """
    means: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    failure: Exception | None = None
    try:
        for number, part in enumerate(parts, 1):
            is_last = number == len(parts)
            is_local = isinstance(objective, DistributedDataParallel) and not is_last
            with objective.no_sync() if is_local else nullcontext():  # type: ignore[operator]
                losses = {name: value / len(parts) for name, value in objective(*part).items()}
                if not is_last:
                    losses["loss"].backward()  # type: ignore[no-untyped-call]
            means = {name: means.get(name, 0.0) + value.detach() for name, value in losses.items()}
    except Exception as error:
        failure = error
    raise_together(failure)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    return means


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


def all_parts(own: Tensor) -> list[Tensor]:
    """The tensors on the host of all processes, of any shapes."""
    if not distributed.is_initialized():
        return [own]
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, own)
    return parts
