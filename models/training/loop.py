"""The training loop of tokenizers and generators.

Step n of a run depends on the state after step n-1 and on n alone: every random choice comes from a generator seeded
with (seed, n), so a killed run resumes from its last saved state with the same results. With ``max_minutes`` the learning
rate follows the clock where that is ahead of the steps, and runs are not reproducible.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from models.errors import CheckpointError, DataError
from models.training.checkpoints import load_state, save_state
from models.training.config import ScheduleConfig
from models.training.distributed import (
    Objective,
    ProcessFailed,
    accumulate_gradients,
    data_parallel,
    is_main,
    largest_of,
    mean_of,
    raise_together,
    rank,
    world_size,
)
from models.training.optimizers import build_optimizers, learning_rate
from models.training.seeding import seeded_generator
from models.training.task import N, Step, Task, recompute_activations
from models.training.training_log import TrainingLog

log = logging.getLogger(__name__)

LOG_EVERY = 10
# A loss over this many times its best smoothed value, in this many logged steps in a row, does not recover.
_EXPLODED, _PATIENCE = 4.0, 5


class Diverged(Exception):
    """The loss or a weight is not finite, or the loss stays far above its best value; resume from the last saved state."""


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
    figures. When ``should_stop`` returns true in a process, the run saves its state and checkpoint after the current step
    and ends; when a process cannot read its data, it saves the state after the last step.

    Raises :class:`Diverged`; :class:`CheckpointError` for the state of another network; ``DataError``;
    :class:`ProcessFailed` if another process raises; ``ValueError`` for a batch size that is not a multiple of the number
    of processes times ``micro_batches``.
    """
    _check_batch_size(task.run.schedule)
    trainer = _Trainer(task, max_minutes, clock)
    if resume:
        trainer.restore(output / "state.pt")
    training_log = TrainingLog(output, trainer.done) if is_main() else None
    figures, latest = dict[str, float](), dict[str, float]()
    (progress,) = largest_of(trainer.progress())
    last = progress >= 1.0
    while not last:
        with _saved_on_failure(trainer, output, training_log):
            figures = trainer.timed_step(progress)
        latest |= figures
        report(trainer.done, progress, latest)
        progress, stop = largest_of(trainer.progress(), should_stop())
        last = progress >= 1.0 or bool(stop)
        evaluated = last or trainer.done % task.run.schedule.evaluate_every == 0
        if evaluated or trainer.done % LOG_EVERY == 0:
            figures = trainer.log_row(latest)
        if evaluated:
            trainer.check_weights()
            figures |= trainer.evaluate()
        if training_log is not None and "step" in figures:
            # Logged before the state is saved: rows after a saved state are written again on resuming.
            training_log.write(figures)
        if training_log is not None and evaluated:
            trainer.save(output, training_log)
    if training_log is not None:
        training_log.close()
    return figures


@contextmanager
def _saved_on_failure(trainer: _Trainer[Any], output: Path, training_log: TrainingLog | None) -> Iterator[None]:
    """Saves the state after the last step if a process cannot read its data."""
    try:
        yield
    except (DataError, ProcessFailed):
        if training_log is not None:
            trainer.save(output, training_log)
        raise_together(None)  # all wait for that: torchrun ends them when the first one exits
        raise


def _check_batch_size(schedule: ScheduleConfig) -> None:
    if schedule.batch_size % (world_size() * schedule.micro_batches):
        raise ValueError(
            f"schedule.batch_size {schedule.batch_size} is not a multiple of {world_size()} processes times "
            f"{schedule.micro_batches} micro-batches"
        )


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
        if task.run.optimizer.recompute_activations:
            recompute_activations(task.network)
        self.objective = data_parallel(Objective(task.network, self._losses))
        self.done = 0
        self.seconds = 0.0
        self.read: tuple[int, float] | None = None  # steps and seconds when figures were read
        self.smoothed = self.best = math.inf
        self.exploded = 0

    def progress(self) -> float:
        """From 0 to 1, by the steps or by the clock, whichever is ahead."""
        by_steps = self.done / self.schedule.steps
        by_clock = 0.0 if self.max_minutes is None else self.seconds / (60.0 * self.max_minutes)
        return min(1.0, max(by_steps, by_clock))

    def timed_step(self, progress: float) -> dict[str, float]:
        """Makes a step. Returns its figures and ``images_per_second`` since they were last read: on a GPU, which has to be
        waited for, in the first step and where they are logged; on a CPU always. Otherwise returns nothing.
        """
        started = self.clock()
        factor = learning_rate(self.schedule, self.done, progress)
        on_device = self._step(progress, factor)
        self.done += 1
        logged = self.done % LOG_EVERY == 0
        due = logged or self.done % self.schedule.evaluate_every == 0 or self.read is None
        if due or self.task.device.type == "cpu":
            values = mean_of(torch.stack([value.float() for value in on_device.values()])).tolist()
            figures = dict(zip(on_device, values, strict=True)) | {"lr_factor": factor}
            self._check(self.done - 1, figures, logged=logged)
        else:
            figures = {}
        if self.read is None:
            self.task.keep_data_on_device()
        elapsed = self.clock() - started
        read, seconds = self.read or (self.done - 1, self.seconds)
        self.seconds += elapsed
        if figures:
            took, self.read = self.seconds - seconds, (self.done, self.seconds)
            figures["images_per_second"] = (self.done - read) * self.schedule.batch_size / took if took else math.inf
        return figures

    def _losses(self, step: Step) -> dict[str, Tensor]:
        # Dropout draws from the process's own generator.
        torch.manual_seed(step.generator.initial_seed() + rank())
        return self.task.losses(step)

    def _step(self, progress: float, factor: float) -> dict[str, Tensor]:
        """Updates the weights once; returns the figures, scalars on the device."""
        number, seed = self.done, self.schedule.seed
        parts = [
            Step(number, progress, seeded_generator(seed, number, part), part)
            for part in range(self.schedule.micro_batches)
        ]
        for each, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group, lr in zip(each.param_groups, base, strict=True):
                group["lr"] = lr * factor
        losses = accumulate_gradients(self.objective, [(part,) for part in parts])
        norm = nn.utils.clip_grad_norm_(self.trained, self.task.run.optimizer.gradient_clip)
        for each in self.optimizers:
            each.step()
            each.zero_grad()
        more = self.task.after_step(parts[-1], self.optimizers)
        self._update_average()
        return {**losses, "gradient_norm": norm, **more}

    def _check(self, step: int, figures: dict[str, float], *, logged: bool) -> None:
        """Raises :class:`Diverged` for a loss that is not finite or has exploded, before the state is saved."""
        loss = figures["loss"]
        for name, value in (("loss", loss), ("gradient", figures["gradient_norm"])):
            if not math.isfinite(value):
                raise Diverged(
                    f"the {name} is {value} at step {step}; the last saved state is valid: resume from it with "
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
                f"{_PATIENCE * LOG_EVERY} steps before step {step}: lower the learning rate"
            )

    def check_weights(self) -> None:
        """Raises :class:`Diverged` if a weight is not finite: figures are not read at every step of a GPU."""
        norm = nn.utils.get_total_norm([*self.task.network.parameters(), *self.average.parameters()])
        if not norm.isfinite():
            raise Diverged(
                f"the weights are not finite after step {self.done - 1}; the last saved state is valid: resume from it "
                f"with --resume and a lower learning rate"
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
        """Resumes from a state that :meth:`save` wrote, if there is one. Raises :class:`CheckpointError`."""
        if not state_file.exists():
            return
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
