"""The training loop that tokenizer and generator share.

Step n of a run depends on the state after step n-1 and on n alone: every random choice is drawn from a generator seeded
with (seed, n). So a run that was killed goes on from its last saved state as if nothing had happened. With
``max_minutes`` the learning rate follows the clock where that is ahead of the steps, and no two runs are the same.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.errors import CheckpointError
from models.runtime.precision import has_fast_bfloat16
from models.training.checkpoints import load_state, save_state
from models.training.config import OptimizerConfig, ScheduleConfig
from models.training.distributed import average_gradients, is_main, mean_of, world_size
from models.training.optimizers import build_optimizers
from models.training.seeding import seeded_generator
from models.training.training_log import TrainingLog

__all__ = ["LOG_EVERY", "Diverged", "N", "Step", "Task", "compute_dtype", "learning_rate", "train"]

log = logging.getLogger(__name__)

N = TypeVar("N", bound=nn.Module)

LOG_EVERY = 10
# A loss this many times its best smoothed value, this many logged steps in a row, will not come back by itself.
_EXPLODED, _PATIENCE = 4.0, 5


class Diverged(Exception):
    """The loss is no longer a number, or has left its range; the last saved state is the one to go back to."""


@dataclass(frozen=True)
class Step:
    """One step: its ``number`` from 0, the ``progress`` of the run from 0 to 1, its own random ``generator``, and the
    ``lr_factor`` on all learning rates.
    """

    number: int
    progress: float
    generator: torch.Generator
    lr_factor: float = 1.0


class Task(Protocol[N]):
    """What is trained."""

    @property
    def network(self) -> N:
        """The network that is trained, on its device."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalars of one batch; ``loss`` is the one to minimise, the others are for the log."""

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:
        """Called when the weights have moved; more scalars for the log."""

    def evaluate(self, network: N) -> dict[str, float]:
        """Figures of the averaged ``network`` on the validation set."""

    def pictures(self, network: N) -> Tensor | None:
        """What there is to look at, uint8 [H, W, 3], or None."""

    def export(self, network: N, folder: Path) -> None:
        """Writes the averaged ``network`` as a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What the task itself must remember."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""


def learning_rate(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """Factor on the learning rates: a linear warm-up times a cosine from 1 to ``final_lr`` over the progress."""
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    return warmup * (schedule.final_lr + (1.0 - schedule.final_lr) * (1.0 + math.cos(math.pi * progress)) / 2.0)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format of matrix products that an :class:`OptimizerConfig` asks for."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Has matrix products and convolutions computed in ``dtype``, where that is bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)


class _Run(Generic[N]):
    """A task under way: its optimizers, its averaged weights, how far it is."""

    def __init__(self, task: Task[N], schedule: ScheduleConfig, optimizer: OptimizerConfig) -> None:
        self.task = task
        self.schedule = schedule
        self.optimizer = optimizer
        self.device = next(task.network.parameters()).device
        self.optimizers = build_optimizers(task.network, optimizer, compute_dtype(optimizer.precision, self.device))
        self.base_lrs = [[group["lr"] for group in each.param_groups] for each in self.optimizers]
        self.trained = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
        self.average = copy.deepcopy(task.network).eval().requires_grad_(False)
        self.done = 0
        self.seconds = 0.0
        self.smoothed = self.best = math.inf
        self.exploded = 0

    def progress(self, max_minutes: float | None) -> float:
        """From 0 to 1, by the steps or by the clock, whichever is ahead."""
        by_steps = self.done / self.schedule.steps
        by_clock = 0.0 if max_minutes is None else self.seconds / (60.0 * max_minutes)
        # Every process must come to the same end, and their clocks differ.
        return min(1.0, float(mean_of(torch.tensor(max(by_steps, by_clock), device=self.device))))

    def step(self, progress: float) -> dict[str, float]:
        """Moves the weights once; the figures are there where they are logged (on a CPU, always)."""
        factor = learning_rate(self.schedule, self.done, progress)
        step = Step(self.done, progress, seeded_generator(self.schedule.seed, self.done), factor)
        torch.manual_seed(step.generator.initial_seed())  # dropout draws from the process's own generator
        for each, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group, lr in zip(each.param_groups, base, strict=True):
                group["lr"] = lr * factor
        losses = self.task.losses(step)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        average_gradients(self.trained)
        norm = nn.utils.clip_grad_norm_(self.trained, self.optimizer.gradient_clip)
        logged = (self.done + 1) % LOG_EVERY == 0
        figures: dict[str, float] = {}
        if logged or self.device.type == "cpu":  # reading a figure makes a GPU wait
            figures = {name: mean_of(loss).item() for name, loss in losses.items()} | {"gradient_norm": norm.item()}
            self._check(step, figures, logged=logged)
        for each in self.optimizers:
            each.step()
            each.zero_grad()
        more = self.task.after_step(step, self.optimizers)
        self._follow()
        self.done += 1
        if figures:
            figures |= {name: mean_of(value).item() for name, value in more.items()} | {"lr_factor": factor}
        return figures

    def _check(self, step: Step, figures: dict[str, float], *, logged: bool) -> None:
        """Raises :class:`Diverged` before the weights are moved by a loss that is not a number or has exploded."""
        loss = figures["loss"]
        if not math.isfinite(loss) or not math.isfinite(figures["gradient_norm"]):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise Diverged(
                f"the {what} is {loss if what == 'loss' else figures['gradient_norm']} at step {step.number}; the last "
                f"saved state is sound: go on from it with --resume and a lower learning rate"
            )
        if not logged:
            return
        self.smoothed = loss if math.isinf(self.smoothed) else 0.8 * self.smoothed + 0.2 * loss
        self.best = min(self.best, self.smoothed)
        self.exploded = self.exploded + 1 if self.best > 0 and loss > _EXPLODED * self.best else 0
        if self.exploded >= _PATIENCE:
            raise Diverged(
                f"the loss has been over {_EXPLODED:g} times its best, {self.best:.4g}, for the last "
                f"{_PATIENCE * LOG_EVERY} steps before step {step.number}: lower the learning rate"
            )

    @torch.no_grad()
    def _follow(self) -> None:
        """The average forgets faster at the beginning; it began as a copy, so what is not trained needs nothing."""
        decay = min(self.schedule.ema_decay, (1 + self.done) / (10 + self.done))
        for average, current in zip(self.average.parameters(), self.task.network.parameters(), strict=True):
            if current.requires_grad:
                average.lerp_(current, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "done": self.done,
            "seconds": self.seconds,
            "loss": [self.smoothed, self.best, self.exploded],
            "schedule": dataclasses.asdict(self.schedule),
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        if state["schedule"] != dataclasses.asdict(self.schedule):
            log.warning("the schedule is not the one this run began with")
        self.task.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for each, saved in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
        self.task.load_state_dict(state["task"])
        self.done, self.seconds = state["done"], state["seconds"]
        self.smoothed, self.best, self.exploded = state["loss"]


def train(
    task: Task[N],
    schedule: ScheduleConfig,
    optimizer: OptimizerConfig,
    output: Path,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    clock: Callable[[], float] = time.monotonic,
    report: Callable[[int, float, dict[str, float]], object] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Trains ``task`` and returns the last figures.

    ``output`` gets ``state.pt``, ``checkpoint/`` and a picture at every evaluation and at the end, and a log with a row
    every ten steps. ``report`` is called after each step with the number of steps done, the progress and the figures.
    When ``stopping`` says so the run ends after the step at hand, with its state and its checkpoint saved.

    Raises :class:`Diverged`; :class:`CheckpointError` for a state of another network; ``ValueError`` for a batch that the
    processes can not share evenly.
    """
    if schedule.batch_size % world_size():
        raise ValueError(f"schedule.batch_size {schedule.batch_size} is not a multiple of {world_size()} processes")
    run = _Run(task, schedule, optimizer)
    state_file = output / "state.pt"
    if resume and state_file.exists():
        _restore(run, state_file)
    journal = TrainingLog(output, run.done) if is_main() else None
    figures: dict[str, float] = {}
    latest: dict[str, float] = {}
    ended = False
    while not ended and (progress := run.progress(max_minutes)) < 1.0:
        began = clock()
        figures = run.step(progress)
        took = clock() - began
        run.seconds += took
        latest |= figures | {"images_per_second": schedule.batch_size / took if took else math.inf}
        if report is not None:
            report(run.done, progress, latest)
        ended = run.progress(max_minutes) >= 1.0 or stopping()
        evaluated = run.done % schedule.evaluate_every == 0 or ended
        if run.done % LOG_EVERY == 0 or evaluated:
            figures = latest | {
                "step": run.done,
                "minutes": run.seconds / 60.0,
                "images": run.done * schedule.batch_size,
            }
        if evaluated:
            began = clock()
            figures |= task.evaluate(run.average)
            run.seconds += clock() - began
            log.info("%s", "  ".join(f"{name} {value:.5g}" for name, value in figures.items()))
        if journal is not None and "step" in figures:
            journal.write(
                figures
            )  # before the state: what follows a saved state is logged again, what precedes it is not
        if journal is not None and evaluated:
            save_state(state_file, run.state_dict())
            task.export(run.average, output / "checkpoint")
            journal.draw(run.done, task.pictures(run.average))
    if journal is not None:
        journal.close()
    return figures


def _restore(run: _Run[N], state_file: Path) -> None:
    try:
        run.load_state_dict(load_state(state_file))
    except (KeyError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{state_file} is not a state of this run: {error}") from error
