"""Two processes on one machine, over gloo: what torchrun starts, and what NCCL would do."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.data.datasets import InMemoryDataset
from models.training.config import TokenizerRun
from models.training.generator import tokenize
from models.training.loop import train
from models.training.pixels import PixelTask
from models.training.pretrained import load_frozen_tokenizer
from models.training.seeding import seeded_generator
from tests.models.training.two_processes import FAILS_AT, STOPS_AT


@dataclass
class Both:
    """What the processes left in ``folder``, and their ``results``."""

    folder: Path
    run: TokenizerRun
    photographs: InMemoryDataset
    results: list[dict[str, Any]]


@pytest.fixture(scope="module")
def both(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path_factory: pytest.TempPathFactory
) -> Both:
    folder = tmp_path_factory.mktemp("two")
    schedule = dataclasses.replace(tokenizer_run.schedule, steps=12, evaluate_every=12)
    run = dataclasses.replace(tokenizer_run, schedule=schedule)
    (folder / "run.pickle").write_bytes(pickle.dumps((run, tiny_photographs)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.models.training.two_processes", str(folder)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads((folder / f"results-{number}.json").read_text()) for number in range(2)]
    return Both(folder, run, tiny_photographs, results)


def test_two_processes_come_to_the_weights_of_one(both: Both, tmp_path: Path) -> None:
    train(PixelTask(both.run, both.photographs, both.photographs), tmp_path)
    one, two = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (tmp_path, both.folder / "two"))
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max().item() < 2e-3, (
            name
        )  # half precision, and Adam's sign for tiny gradients
    assert (both.folder / "two" / "log.csv").read_text().count("\n") == 1 + 2


def test_processes_take_different_crops_those_of_one_process(both: Both) -> None:
    for step in range(12):
        whole = torch.rand(8, 2, generator=seeded_generator(both.run.schedule.seed, step, 0))
        shares = [result["crops"][step] for result in both.results]
        assert np.concatenate(shares) == pytest.approx(whole.numpy())


def test_processes_draw_different_dropout(both: Both) -> None:
    first, second = (result["dropout"] for result in both.results)
    assert len(first) == len(second) == 3
    assert first != second


def test_a_data_error_of_one_process_ends_both_with_the_state_before_it(both: Both) -> None:
    assert both.results[1]["failure"] == ["DataError", "more than 1 % of the images cannot be read"]
    assert both.results[0]["failure"] == ["ProcessFailed", "another process of this run failed; its message says why"]
    state = torch.load(both.folder / "failed" / "state.pt", weights_only=True)
    assert state["done"] == FAILS_AT
    # One process goes on where two have stopped.
    run = dataclasses.replace(both.run, schedule=dataclasses.replace(both.run.schedule, steps=8))
    task = PixelTask(run, both.photographs, both.photographs)
    assert train(task, both.folder / "failed", resume=True)["step"] == 8


def test_a_signal_to_one_process_stops_both_after_the_same_step(both: Both) -> None:
    assert [result["steps"] for result in both.results] == [list(range(1, STOPS_AT + 1))] * 2
    assert torch.load(both.folder / "stopped" / "state.pt", weights_only=True)["done"] == STOPS_AT


def test_accumulated_gradients_and_the_discriminator_s_are_averaged(both: Both) -> None:
    first, second = (result["weights"] for result in both.results)
    assert first == pytest.approx(second, rel=1e-6)


def test_processes_share_the_tokenization_and_have_all_tokens(both: Both, tmp_path: Path) -> None:
    assert [result["encoded"] for result in both.results] == [[40], [40]]  # 20 images and their mirror images
    assert [result["progress"][-1] for result in both.results] == [[40, 40]] * 2
    named = dataclasses.replace(both.photographs, names=("cat", "dog"))
    tokenizer = load_frozen_tokenizer(str(both.folder / "two" / "checkpoint"))
    expected = tokenize(named, {"cat": "cat", "dog": "dog"}, tokenizer, cache=tmp_path).ids.tolist()
    assert [result["tokens"] for result in both.results] == [expected] * 2


def test_a_batch_that_processes_can_not_share_is_refused(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.training.loop.world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of 3 processes times 1 micro-batches"):
        train(
            PixelTask(tokenizer_run, tiny_photographs, tiny_photographs),
            tmp_path,
        )
