"""The training loop that tokenizer and generator share.

Step n of a run depends on the state after step n-1 and on n alone: every random choice is drawn from a generator seeded
with (seed, n). So a run that was killed goes on from its last saved state as if nothing had happened. With
``max_minutes`` the learning rate follows the clock where that is ahead of the steps, and no two runs are the same.
"""

from __future__ import annotations

import copy
import csv
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

from models.training.config import OptimizerConfig, ScheduleConfig
from models.training.optimizers import build_optimizers
from models.training.order import seeded
from models.training.state import load_state, save_state

__all__ = ["Diverged", "N", "Step", "Task", "learning_rate", "train"]

log = logging.getLogger(__name__)

N = TypeVar("N", bound=nn.Module)


class Diverged(Exception):
    """The loss is no longer a number; the last saved state is the one to go back to."""


@dataclass(frozen=True)
class Step:
    """One step: its ``number`` from 0, the ``progress`` of the run from 0 to 1, and its own random ``generator``."""

    number: int
    progress: float
    generator: torch.Generator


class Task(Protocol[N]):
    """What is trained."""

    @property
    def network(self) -> N:
        """The network that is trained."""

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalars of one batch; ``loss`` is the one to minimise, the others are for the log."""

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> None:
        """Called when the weights have moved."""

    def evaluate(self, network: N) -> dict[str, float]:
        """Figures of the averaged ``network`` on the validation set."""

    def export(self, network: N, folder: Path) -> None:
        """Writes the averaged ``network`` as a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """What the task itself must remember."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""


def learning_rate(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """Factor on the learning rates: a linear warm-up times a cosine from 1 to ``final_lr`` over the progress."""
    warmup = min(1.0, (step + 1) / schedule.warmup_steps)
    return warmup * (schedule.final_lr + (1.0 - schedule.final_lr) * (1.0 + math.cos(math.pi * progress)) / 2.0)


class _Run(Generic[N]):
    """A task under way: its optimizers, its averaged weights, how far it is."""

    def __init__(self, task: Task[N], schedule: ScheduleConfig, optimizer: OptimizerConfig) -> None:
        self.task = task
        self.schedule = schedule
        self.optimizer = optimizer
        self.optimizers = build_optimizers(
            task.network,
            muon_lr=optimizer.muon_lr,
            adamw_lr=optimizer.adamw_lr,
            adamw_betas=optimizer.adamw_betas,
            weight_decay=optimizer.weight_decay,
            dtype=getattr(torch, optimizer.precision),
        )
        self.base_lrs = [[group["lr"] for group in each.param_groups] for each in self.optimizers]
        self.average = copy.deepcopy(task.network).eval().requires_grad_(False)
        self.done = 0
        self.seconds = 0.0

    def progress(self, max_minutes: float | None) -> float:
        """From 0 to 1, by the steps or by the clock, whichever is ahead."""
        by_steps = self.done / self.schedule.steps
        return min(1.0, by_steps if max_minutes is None else max(by_steps, self.seconds / (60.0 * max_minutes)))

    def step(self, progress: float) -> dict[str, float]:
        step = Step(self.done, progress, seeded(self.schedule.seed, self.done))
        factor = learning_rate(self.schedule, step.number, progress)
        for each, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group, lr in zip(each.param_groups, base, strict=True):
                group["lr"] = lr * factor
        losses = self.task.losses(step)
        figures = {name: loss.item() for name, loss in losses.items()}
        if not math.isfinite(figures["loss"]):
            raise Diverged(f"the loss is {figures['loss']} at step {step.number}")
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.task.network.parameters(), self.optimizer.gradient_clip)
        for each in self.optimizers:
            each.step()
            each.zero_grad()
        self.task.after_step(step, self.optimizers)
        self._follow()
        self.done += 1
        return {**figures, "gradient_norm": norm.item(), "lr_factor": factor}

    @torch.no_grad()
    def _follow(self) -> None:
        """The average forgets faster at the beginning."""
        decay = min(self.schedule.ema_decay, (1 + self.done) / (10 + self.done))
        for average, current in zip(self.average.parameters(), self.task.network.parameters(), strict=True):
            average.lerp_(current, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "seconds": self.seconds,
            "schedule": dataclasses.asdict(self.schedule),
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["schedule"] != dataclasses.asdict(self.schedule):
            log.warning("the schedule is not the one this run began with")
        self.task.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for each, saved in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
        self.task.load_state_dict(state["task"])
        self.done, self.seconds = state["done"], state["seconds"]


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
) -> dict[str, float]:
    """Trains ``task`` and returns the last figures.

    ``output`` gets ``state.pt`` and ``checkpoint/`` at every evaluation and at the end, and ``log.csv``, one row every
    ten steps. ``report`` is called after each step with the number of steps done, the progress and the figures.
    """
    run = _Run(task, schedule, optimizer)
    state_file, log_file = output / "state.pt", output / "log.csv"
    if resume and state_file.exists():
        run.load_state_dict(load_state(state_file))
    rows = _rows_before(log_file, run.done)
    figures: dict[str, float] = {}
    while (progress := run.progress(max_minutes)) < 1.0:
        began = clock()
        figures = run.step(progress)
        took = clock() - began
        run.seconds += took
        figures["images_per_second"] = schedule.batch_size / took if took else math.inf
        if report is not None:
            report(run.done, progress, figures)
        ended = run.progress(max_minutes) >= 1.0
        if run.done % 10 == 0 or ended:
            figures |= {"step": run.done, "minutes": run.seconds / 60.0, "images": run.done * schedule.batch_size}
            rows.append(figures)
        if run.done % schedule.evaluate_every == 0 or ended:
            began = clock()
            figures |= task.evaluate(run.average)
            run.seconds += clock() - began
            log.info("%s", "  ".join(f"{name} {value:.5g}" for name, value in figures.items()))
            save_state(state_file, run.state_dict())
            task.export(run.average, output / "checkpoint")
        if run.done % 10 == 0 or ended:
            _write_rows(log_file, rows)
    return figures


def _rows_before(log_file: Path, step: int) -> list[dict[str, Any]]:
    """Rows of the log up to ``step``: a run that goes on writes the later ones again."""
    if step == 0 or not log_file.exists():
        return []
    with log_file.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= step]


def _write_rows(log_file: Path, rows: list[dict[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )
