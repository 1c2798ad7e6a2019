"""Bulk tokenization on a CUDA device writes the files that a CPU writes, also when batches do not fit into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.bulk import tokenization
from service.bulk.crops import Crops
from service.bulk.run import run_job
from tests.fake_cuda import FakeCuda
from tests.service.bulk.data_sets import broken_images, digests, folder_of, job, run
from tests.tiny_models import tiny_tokenizer


@pytest.mark.parametrize("memory", [1 << 40, 1000 << 10], ids=["enough-memory", "short-of-memory"])
def test_tokens_are_those_of_a_cpu(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokenization, "load_tokenizer", lambda _, *, device, **__: tiny_tokenizer(device=device))
    monkeypatch.setattr(
        tokenization, "calibrate", lambda made, count: made.encode(np.zeros((count, 32, 32, 3), np.uint8))
    )
    asked = job(
        folder_of(tmp_path / "source", broken_images()), tmp_path / "cpu", crops=Crops(flip=True), batch_size=16
    )
    run(asked)
    with FakeCuda(memory=memory):
        run_job(replace(asked, destination=tmp_path / "cuda", device="cuda"))
    assert digests(tmp_path / "cuda") == digests(tmp_path / "cpu")
    assert ("do not fit into memory" in caplog.text) == (memory < 1 << 40)
