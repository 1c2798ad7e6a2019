"""``make gpu-check`` where there is no device: it says so, and that is no failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_checked_and_nothing_written(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", "--output", tmp_path / "out"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "no CUDA device here" in ended.stdout
    assert not (tmp_path / "out").exists()
