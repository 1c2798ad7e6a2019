"""Two processes on one machine, over gloo: what torchrun starts."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from models.data.datasets import InMemoryDataset
from models.training.config import TokenizerRun
from models.training.loop import train
from models.training.pixels import PixelTask

WORKER = """
import pickle, sys
from pathlib import Path
import torch
from models.training.distributed import process_group, world_size
from models.training.loop import train
from models.training.pixels import PixelTask
torch.set_num_threads(1)
run, photographs, output = pickle.loads(Path(sys.argv[1]).read_bytes())
with process_group(torch.device("cpu")):
    assert world_size() == 2
    task = PixelTask(run, photographs, photographs)
    train(task, output)
"""


def test_two_processes_come_to_the_weights_of_one(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path
) -> None:
    import pickle

    schedule = dataclasses.replace(tokenizer_run.schedule, steps=12, evaluate_every=12)
    run = dataclasses.replace(tokenizer_run, schedule=schedule)
    train(PixelTask(run, tiny_photographs, tiny_photographs), tmp_path / "one")
    (tmp_path / "run.pickle").write_bytes(pickle.dumps((run, tiny_photographs, tmp_path / "two")))
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "worker.py"), str(tmp_path / "run.pickle")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max().item() < 2e-3, (
            name
        )  # half precision, and Adam's sign for tiny gradients
    assert (tmp_path / "two" / "log.csv").read_text().count("\n") == 1 + 2


def test_a_batch_that_processes_can_not_share_is_refused(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.training.loop.world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of 3 processes"):
        train(
            PixelTask(tokenizer_run, tiny_photographs, tiny_photographs),
            tmp_path,
        )
