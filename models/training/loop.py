"""The training loop of tokenizers and generators.

Step n of a run depends on the state after step n-1 and on n alone: every random choice comes from a generator seeded
with (seed, n), so a killed run resumes from its last saved state with the same results. With ``max_minutes`` the learning
rate follows the clock where that is ahead of the steps, and runs are not reproducible.
"""

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from models.errors import CheckpointError
from models.training.checkpoints import load_state, save_state
from models.training.config import ScheduleConfig
from models.training.distributed import average_gradients, is_main, mean_of, world_size
from models.training.optimizers import build_optimizers
from models.training.seeding import seeded_generator
from models.training.task import N, Step, Task
from models.training.training_log import TrainingLog

log = logging.getLogger(__name__)

LOG_EVERY = 10
# A loss over this many times its best smoothed value, in this many logged steps in a row, does not recover.
_EXPLODED, _PATIENCE = 4.0, 5


class Diverged(Exception):
    """The loss is not finite, or stays far above its best value; resume from the last saved state."""


def train(
    task: Task[N],
    output: Path,
    *,
    max_minutes: float | None = None,
    resume: bool = False,
    clock: Callable[[], float] = time.monotonic,
    report: Callable[[int, float, dict[str, float]], object] = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Trains ``task`` and returns the last figures.

    Writes ``state.pt``, ``checkpoint/`` and a picture to ``output`` at every evaluation and at the end, and a row of
    ``log.csv`` every ten steps. ``report`` is called after each step with the number of steps done, the progress and the
    figures. When ``should_stop`` returns true, the run saves its state and checkpoint after the current step and ends.

    Raises :class:`Diverged`; :class:`CheckpointError` for the state of another network; ``ValueError`` for a batch size
    that is not a multiple of the number of processes.
    """
    schedule = task.run.schedule
    if schedule.batch_size % world_size():
        raise ValueError(f"schedule.batch_size {schedule.batch_size} is not a multiple of {world_size()} processes")
    trainer = _Trainer(task, max_minutes, clock)
    if resume and (output / "state.pt").exists():
        trainer.restore(output / "state.pt")
    training_log = TrainingLog(output, trainer.done) if is_main() else None
    figures: dict[str, float] = {}
    latest: dict[str, float] = {}
    while (progress := trainer.progress()) < 1.0:
        figures = trainer.timed_step(progress)
        latest |= figures
        report(trainer.done, progress, latest)
        last = trainer.progress() >= 1.0 or should_stop()
        evaluated = last or trainer.done % schedule.evaluate_every == 0
        if evaluated or trainer.done % LOG_EVERY == 0:
            figures = trainer.log_row(latest)
        if evaluated:
            figures |= trainer.evaluate()
        if training_log is not None and "step" in figures:
            # Logged before the state is saved: rows after a saved state are written again on resuming.
            training_log.write(figures)
        if training_log is not None and evaluated:
            trainer.save(output, training_log)
        if last:
            break
    if training_log is not None:
        training_log.close()
    return figures


def learning_rate(schedule: ScheduleConfig, step: int, progress: float) -> float:
    """Factor on the learning rates: a linear warm-up times a cosine from 1 to ``final_lr`` over the progress."""
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    return warmup * (schedule.final_lr + (1.0 - schedule.final_lr) * (1.0 + math.cos(math.pi * progress)) / 2.0)


class _Trainer(Generic[N]):
    """A task with its optimizers, its averaged weights, and the number of steps ``done``."""

    def __init__(self, task: Task[N], max_minutes: float | None, clock: Callable[[], float]) -> None:
        self.task = task
        self.schedule = task.run.schedule
        self.max_minutes = max_minutes
        self.clock = clock
        self.optimizers = build_optimizers(task.network, task.run.optimizer, task.dtype)
        self.base_lrs = [[group["lr"] for group in each.param_groups] for each in self.optimizers]
        self.trained = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
        self.average = copy.deepcopy(task.network).eval().requires_grad_(False)
        self.done = 0
        self.seconds = 0.0
        self.smoothed = self.best = math.inf
        self.exploded = 0

    def progress(self) -> float:
        """From 0 to 1, by the steps or by the clock, whichever is ahead."""
        by_steps = self.done / self.schedule.steps
        by_clock = 0.0 if self.max_minutes is None else self.seconds / (60.0 * self.max_minutes)
        # Averaged, so that every process ends after the same step: their clocks differ.
        return min(1.0, float(mean_of(torch.tensor(max(by_steps, by_clock), device=self.task.device))))

    def timed_step(self, progress: float) -> dict[str, float]:
        """Makes a step; returns its figures and ``images_per_second``."""
        started = self.clock()
        figures = self._step(progress)
        took = self.clock() - started
        self.seconds += took
        return figures | {"images_per_second": self.schedule.batch_size / took if took else math.inf}

    def _step(self, progress: float) -> dict[str, float]:
        """Updates the weights once; figures are read only where they are logged, on a CPU always."""
        factor = learning_rate(self.schedule, self.done, progress)
        step = Step(self.done, progress, seeded_generator(self.schedule.seed, self.done), factor)
        torch.manual_seed(step.generator.initial_seed())  # dropout draws from the process's own generator
        for each, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group, lr in zip(each.param_groups, base, strict=True):
                group["lr"] = lr * factor
        losses = self.task.losses(step)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        average_gradients(self.trained)
        norm = nn.utils.clip_grad_norm_(self.trained, self.task.run.optimizer.gradient_clip)
        logged = (self.done + 1) % LOG_EVERY == 0
        figures: dict[str, float] = {}
        if logged or self.task.device.type == "cpu":  # reading a figure synchronises with a GPU
            figures = {name: mean_of(loss).item() for name, loss in losses.items()} | {"gradient_norm": norm.item()}
            self._check(step, figures, logged=logged)
        for each in self.optimizers:
            each.step()
            each.zero_grad()
        more = self.task.after_step(step, self.optimizers)
        self._update_average()
        self.done += 1
        if figures:
            figures |= {name: mean_of(value).item() for name, value in more.items()} | {"lr_factor": factor}
        return figures

    def _check(self, step: Step, figures: dict[str, float], *, logged: bool) -> None:
        """Raises :class:`Diverged` before a loss that is not finite or has exploded updates the weights."""
        loss = figures["loss"]
        for name, value in (("loss", loss), ("gradient", figures["gradient_norm"])):
            if not math.isfinite(value):
                raise Diverged(
                    f"the {name} is {value} at step {step.number}; the last saved state is valid: resume from it with "
                    f"--resume and a lower learning rate"
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
    def _update_average(self) -> None:
        """Exponential moving average of trained weights, with a smaller decay in the first steps."""
        decay = min(self.schedule.ema_decay, (1 + self.done) / (10 + self.done))
        for average, current in zip(self.average.parameters(), self.task.network.parameters(), strict=True):
            if current.requires_grad:
                average.lerp_(current, 1.0 - decay)

    def log_row(self, latest: dict[str, float]) -> dict[str, float]:
        """The latest figures with ``step``, ``minutes`` and ``images`` seen."""
        images = self.done * self.schedule.batch_size
        return latest | {"step": self.done, "minutes": self.seconds / 60.0, "images": images}

    def evaluate(self) -> dict[str, float]:
        """Validation metrics of the averaged weights; the time counts towards ``max_minutes``."""
        started = self.clock()
        figures = self.task.evaluate(self.average)
        self.seconds += self.clock() - started
        log.info("step %d  %s", self.done, "  ".join(f"{name} {value:.5g}" for name, value in figures.items()))
        return figures

    def save(self, output: Path, training_log: TrainingLog) -> None:
        """Writes ``state.pt``, the checkpoint and the picture."""
        state = {
            "done": self.done,
            "seconds": self.seconds,
            "loss": [self.smoothed, self.best, self.exploded],
            "schedule": dataclasses.asdict(self.schedule),
            "network": self.task.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "task": self.task.state_dict(),
        }
        save_state(output / "state.pt", state)
        self.task.export(self.average, output / "checkpoint")
        training_log.save_picture(self.done, self.task.pictures(self.average))

    def restore(self, state_file: Path) -> None:
        """Resumes from a state that :meth:`save` wrote. Raises :class:`CheckpointError`."""
        try:
            self._load(load_state(state_file))
        except (KeyError, RuntimeError, ValueError, EOFError) as error:
            raise CheckpointError(f"{state_file} is not a state of this run: {error}") from error

    def _load(self, state: dict[str, Any]) -> None:
        if state["schedule"] != dataclasses.asdict(self.schedule):
            log.warning("the schedule differs from the one in the saved state")
        self.task.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for each, saved in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
        self.task.load_state_dict(state["task"])
        self.done, self.seconds = state["done"], state["seconds"]
        self.smoothed, self.best, self.exploded = state["loss"]
