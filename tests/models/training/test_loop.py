import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import Optimizer

from models import load_tokenizer
from models.data.datasets import InMemoryDataset
from models.errors import CheckpointError
from models.training.config import TokenizerRun
from models.training.loop import Diverged, _Trainer, train
from models.training.pixels import PixelTask
from models.training.task import Step

Report = Callable[[int, float, dict[str, float]], None]


class Killed(BaseException):
    pass


def fit(
    run: TokenizerRun,
    photographs: InMemoryDataset,
    output: Path,
    *,
    report: Report = lambda *_: None,
    max_minutes: float | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    resume: bool = False,
) -> dict[str, float]:
    task = PixelTask(run, photographs, photographs)
    return train(
        task,
        output,
        max_minutes=max_minutes,
        resume=resume,
        clock=clock,
        report=report,
    )


def test_a_killed_run_resumes_to_the_same_result(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    schedule = dataclasses.replace(tokenizer_run.schedule, steps=40, evaluate_every=20)
    tokenizer_run = dataclasses.replace(tokenizer_run, schedule=schedule)
    losses: dict[int, float] = {}
    fit(tokenizer_run, tiny_photographs, tmp_path / "whole", report=lambda step, _, f: losses.update({step: f["loss"]}))
    again: dict[int, float] = {}

    def killed_at_36(step: int, _: float, figures: dict[str, float]) -> None:
        if step == 36:
            raise Killed

    with pytest.raises(Killed):
        fit(tokenizer_run, tiny_photographs, tmp_path / "killed", report=killed_at_36)
    fit(
        tokenizer_run,
        tiny_photographs,
        tmp_path / "killed",
        report=lambda step, _, f: again.update({step: f["loss"]}),
        resume=True,
    )
    assert sorted(again) == list(range(21, 41))
    for step, loss in again.items():
        assert loss == pytest.approx(losses[step], abs=1e-6)
    whole, resumed = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "killed"))
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-3)
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "killed")]
    assert [row["step"] for row in csv.DictReader(logs[1].splitlines())] == ["10", "20", "30", "40"]
    assert logs[0] == logs[1]


def test_training_learns_and_ends_in_a_checkpoint_that_loads(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    untrained = PixelTask(tokenizer_run, tiny_photographs, tiny_photographs)
    before = untrained.evaluate(untrained.network.eval())["validation_psnr"]
    schedule = dataclasses.replace(tokenizer_run.schedule, steps=150, ema_decay=0.9)
    figures = fit(dataclasses.replace(tokenizer_run, schedule=schedule), tiny_photographs, tmp_path)
    assert figures["validation_psnr"] > before + 0.5
    assert figures["images"] == 150 * 8
    tokenizer = load_tokenizer("mine", weights=tmp_path / "checkpoint")
    ids = tokenizer.encode(tiny_photographs.images[:3])
    assert ids.shape == (3, 4)
    assert tokenizer.decode(ids).shape == (3, 16, 16, 3)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["model"]["vq_model"]["pixel_head"] == "conv"


def test_the_clock_can_end_a_run_early(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    now = iter(range(0, 10_000, 3))
    figures = fit(tokenizer_run, tiny_photographs, tmp_path, max_minutes=0.5, clock=lambda: float(next(now)))
    assert figures["step"] == 10  # of three seconds each
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()


def spoiled(monkeypatch: pytest.MonkeyPatch, factor: Callable[[int], float]) -> None:
    """Multiplies the losses of each step."""
    losses = PixelTask.losses
    monkeypatch.setattr(
        PixelTask,
        "losses",
        lambda task, step: {name: loss * factor(step.number) for name, loss in losses(task, step).items()},
    )


def test_a_loss_that_is_no_number_stops_the_run_before_it_moves_the_weights(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, lambda step: math.nan if step == 12 else 1.0)
    with pytest.raises(Diverged, match="the loss is nan at step 12; the last saved state is valid"):
        fit(tokenizer_run, tiny_photographs, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["done"] == 10
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


def test_weights_that_are_no_numbers_are_not_saved(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step = PixelTask.after_step

    def spoil(task: PixelTask, step: Step, optimizers: list[Optimizer]) -> dict[str, torch.Tensor]:
        if step.number == 13:  # after the last figures that are read before the state is saved
            task.network.latent_tokens.data[0, 0] = math.inf
        return after_step(task, step, optimizers)

    monkeypatch.setattr(PixelTask, "after_step", spoil)
    schedule = dataclasses.replace(tokenizer_run.schedule, evaluate_every=7)
    with pytest.raises(Diverged, match="the weights are not finite after step 13; the last saved state is valid"):
        fit(dataclasses.replace(tokenizer_run, schedule=schedule), tiny_photographs, tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["done"] == 7


@pytest.mark.parametrize("change", ["micro-batches", "recomputed activations"])
def test_options_that_save_memory_do_not_change_the_gradients(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, change: str
) -> None:
    """The parts of a batch add up to its gradient; the data are such that augmentation changes nothing."""
    images = InMemoryDataset(np.full_like(tiny_photographs.images, 100), tiny_photographs.labels)
    run = dataclasses.replace(
        tokenizer_run,
        schedule=dataclasses.replace(tokenizer_run.schedule, micro_batches=4 if change == "micro-batches" else 1),
        optimizer=dataclasses.replace(tokenizer_run.optimizer, recompute_activations=change != "micro-batches"),
    )
    norms = []
    calls = {"forward": 0}
    for each in (tokenizer_run, run):
        trainer = _Trainer(PixelTask(each, images, images), None, lambda: 0.0)
        calls["forward"] = 0
        trainer.task.network.encoder.transformer[0].attn.register_forward_hook(
            lambda *_: calls.update(forward=calls["forward"] + 1)
        )
        norms.append(trainer.timed_step(0.0)["gradient_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert calls["forward"] == (4 if change == "micro-batches" else 2)


def test_a_step_without_figures_is_not_read_from_a_device(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset
) -> None:
    trainer = _Trainer(PixelTask(tokenizer_run, tiny_photographs, tiny_photographs), None, lambda: 0.0)
    trainer.task.device = torch.device("meta")
    trainer._step = lambda *_: {"loss": torch.ones(()), "gradient_norm": torch.ones(())}  # type: ignore[method-assign]
    read = [bool(trainer.timed_step(0.0)) for _ in range(20)]
    assert [step for step, was_read in enumerate(read, 1) if was_read] == [1, 10, 20]


def test_a_loss_that_has_left_its_range_stops_the_run(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, lambda step: 100.0 if step >= 20 else 1.0)
    longer = dataclasses.replace(tokenizer_run, schedule=dataclasses.replace(tokenizer_run.schedule, steps=100))
    with pytest.raises(Diverged, match=r"over 4 times its best, .* before step 69: lower the learning rate"):
        fit(longer, tiny_photographs, tmp_path)


def test_a_stopped_run_saves_and_resumes(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    task = PixelTask(tokenizer_run, tiny_photographs, tiny_photographs)
    asked = iter([False] * 13 + [True])
    figures = train(task, tmp_path, should_stop=lambda: next(asked))
    assert figures["step"] == 14
    assert load_tokenizer("mine", weights=tmp_path / "checkpoint").num_tokens == 4
    assert fit(tokenizer_run, tiny_photographs, tmp_path, resume=True)["step"] == 30


def test_a_state_of_another_network_is_refused(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    fit(tokenizer_run, tiny_photographs, tmp_path)
    wider = dataclasses.replace(tokenizer_run.network, pixel_head_channels=16)
    with pytest.raises(CheckpointError, match=r"state\.pt is not a state of this run"):
        fit(dataclasses.replace(tokenizer_run, network=wider), tiny_photographs, tmp_path, resume=True)


def test_figures_and_pictures_are_left_to_look_at(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    fit(tokenizer_run, tiny_photographs, tmp_path)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["000010.png", "000020.png", "000030.png"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("validation_psnr")] == [10, 20, 30]
    logged = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert float(logged[-1]["validation_psnr"]) == pytest.approx(events.Scalars("validation_psnr")[-1].value, rel=1e-4)
    assert {"codes_used", "entropy_bits", "seam_ratio", "quantizer", "gradient_norm"} <= set(logged[-1])


def test_another_schedule_is_noticed_on_resuming(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tokenizer_run, tiny_photographs, tmp_path)
    longer = dataclasses.replace(tokenizer_run.schedule, steps=40)
    fit(dataclasses.replace(tokenizer_run, schedule=longer), tiny_photographs, tmp_path, resume=True)
    assert "the schedule differs from the one in the saved state" in caplog.text
