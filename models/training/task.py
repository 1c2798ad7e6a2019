"""What the training loop trains: a network with its losses, its evaluation and its checkpoint."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from models.runtime.precision import has_fast_bfloat16
from models.training.config import TrainingRun

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Step:
    """A part of a step: the step's ``number`` from 0, the ``progress`` of the run from 0 to 1, the part's own random
    ``generator``, and the number of the ``part`` of the batch.
    """

    number: int
    progress: float
    generator: torch.Generator
    part: int = 0


class Stateful(Protocol):
    """A part of a task with a state besides the network's weights."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restores :meth:`state_dict`."""


class Task(ABC, Generic[N]):
    """A ``network`` in training on ``device``; ``dtype`` is the number format of matrix products. ``parts`` by name are
    saved and restored with the network.
    """

    def __init__(self, run: TrainingRun, network: N, device: torch.device | str) -> None:
        self.run = run
        self.parts: dict[str, Stateful] = {}
        self.device = torch.device(device)
        self.network = network.to(self.device)
        precision = run.optimizer.precision
        low = has_fast_bfloat16(self.device) if precision == "auto" else precision == "bfloat16"
        self.dtype = torch.bfloat16 if low else torch.float32

    @abstractmethod
    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalar losses of one batch; ``loss`` is minimised, the others are logged."""

    @abstractmethod
    def evaluate(self, network: N) -> dict[str, float]:
        """Metrics of the averaged ``network`` on the validation set."""

    @abstractmethod
    def export(self, network: N, folder: Path) -> None:
        """Writes the averaged ``network`` as a checkpoint that the service loads."""

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:  # noqa: ARG002
        """Runs after the weights were updated, with the last part of the step; returns more scalars to log."""
        return {}

    def keep_data_on_device(self) -> None:
        """Called after the first step, when memory has been allocated for all that a step needs."""

    def pictures(self, network: N) -> Tensor | None:  # noqa: ARG002
        """Sample images to log, uint8 [H, W, 3], or None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def autocast(self) -> torch.autocast:
        """Runs matrix products and convolutions in ``dtype``."""
        return autocast(self.device, self.dtype)


def recompute_activations(network: nn.Module) -> None:
    """Makes the repeated blocks of a network compute their activations again in the backward pass. Copies of the network
    made before are not changed; no copies may be made afterwards.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for blocks in lists for block in blocks):
        if not any(isinstance(module, nn.ModuleList) for module in block.modules()):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Runs matrix products and convolutions in bfloat16 if ``dtype`` is bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
