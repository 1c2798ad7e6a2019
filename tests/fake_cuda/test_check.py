"""``make gpu-check`` on the fake device, with small models: no minute of a real one is lost to an error in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.checkpoints.bundled import DEFAULT_VARIANT
from tests.benchmarks import gpu, gpu_models, gpu_targets, precision
from tests.fake_cuda import FakeCuda
from tests.tiny_models import tiny_generator, tiny_tokenizer


def test_the_check_runs_and_compares_with_the_targets(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (gpu, gpu_models, precision):
        monkeypatch.setattr(module, "tokenizer", lambda _, dtype, device: tiny_tokenizer(dtype=dtype, device=device))
    monkeypatch.setattr(gpu_models, "generator", lambda _, dtype, device: tiny_generator(dtype=dtype, device=device))
    monkeypatch.setattr(gpu_models, "_MATRIX_SIZE", 16)
    monkeypatch.setattr(gpu_models, "release_memory", lambda _: None)
    fastest = gpu_models._fastest
    monkeypatch.setattr(gpu_models, "_fastest", lambda run, _, device: fastest(run, 0.0, device))
    monkeypatch.setattr(gpu_targets, "LARGE", DEFAULT_VARIANT)
    monkeypatch.setattr(gpu.Check, "budget", 0.0, raising=False)
    # The service is left out: its workers are processes of their own, without the fake device.
    asked = f"--models {DEFAULT_VARIANT} --batches 1 2 --images 4 --parts tests throughput ids --output {tmp_path}"
    monkeypatch.setattr(gpu, "RUNNER", "tests.fake_cuda")
    monkeypatch.setattr(
        gpu, "TESTS", "tests/gpu/test_models.py::test_memory_that_cannot_be_pinned_is_an_error_and_the_device_works_on"
    )
    monkeypatch.setattr(gpu, "TRAINING_TESTS", "tests/gpu/test_check.py")
    gpu.main(asked.split())
    found = {row["name"]: row["measured"] for row in json.loads((tmp_path / "gpu.json").read_text())["targets"]}
    assert found["share of models whose float32 ids are equal in all batches"] == 1.0
    assert found["images/s through HTTP over bare model"] is None
    assert all(value for name, value in found.items() if name.startswith(DEFAULT_VARIANT))
    printed = capsys.readouterr().out
    assert "1 passed, 1 deselected" in printed
    assert "service: not in --parts" in printed
    assert "| images/s through HTTP over bare model | 0.92 | left out |  |" in printed
