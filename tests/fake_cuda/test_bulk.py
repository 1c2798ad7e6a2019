"""Bulk tokenization on a CUDA device writes the files that a CPU writes, also when batches do not fit into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.bulk import detokenization, sampling, tokenization
from service.bulk.crops import Crops
from service.bulk.job import Job
from service.bulk.run import run_job
from tests.fake_cuda import FakeCuda
from tests.service.bulk.data_sets import (
    broken_images,
    detokenize_job,
    digests,
    folder_of,
    images,
    job,
    run,
    sample_job,
    tokens_of,
)
from tests.tiny_models import tiny_generator, tiny_tokenizer


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


@pytest.mark.parametrize(
    ("command", "memory"),
    [("detokenize", 1 << 40), ("detokenize", 1000 << 10), ("sample", 1 << 40), ("sample", 1500 << 10)],
)
def test_images_are_those_of_a_cpu(
    command: str, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (detokenization, sampling):
        monkeypatch.setattr(module, "load_tokenizer", lambda _, *, device, **__: tiny_tokenizer(device=device))
    monkeypatch.setattr(sampling, "load_generator", lambda _, *, device, **__: tiny_generator(device=device))
    if command == "sample":
        asked: Job[Any] = sample_job(tmp_path / "cpu", batch_size=16, shard_images=16)
    else:
        tokens = tokens_of(tmp_path / "set", images())
        asked = detokenize_job(tokens, tmp_path / "cpu", batch_size=16, shard_images=16)
    run(asked)
    with FakeCuda(memory=memory):
        run_job(replace(asked, destination=tmp_path / "cuda", device="cuda"))
    assert ("do not fit into memory" in caplog.text) == (memory < 1 << 40)
    found, wanted = digests(tmp_path / "cuda"), digests(tmp_path / "cpu")
    names = wanted.keys() - {"manifest.json"}  # which has the size of the batches
    assert {name: found[name] for name in names} == {name: wanted[name] for name in names}
