"""The parity table, printed at the end of the run, and tiny datasets."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.datasets import InMemoryDataset


@pytest.fixture
def record_parity(request: pytest.FixtureRequest) -> Callable[..., float]:
    """Records a deviation (or a number of equal ids among those compared) and returns the deviation."""

    def record(case: str, quantity: str, deviation: float, equal: int = 0, compared: int = 0) -> float:
        request.node.user_properties.append(("parity", (case, quantity, deviation, equal, compared)))
        return deviation

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    calls = (report for report in reports if getattr(report, "when", "") == "call")
    rows = [row for report in calls for name, row in report.user_properties if name == "parity"]
    if not rows:
        return
    terminalreporter.section("parity with the published implementation")
    terminalreporter.write_line(f"{'case':<36} {'quantity':<24} {'deviation':>10} {'ids equal / compared':>22}")
    for case, quantity, deviation, equal, compared in rows:
        shown = "" if math.isnan(deviation) else f"{deviation:.1e}"
        ids = f"{equal} / {compared}" if compared else ""
        terminalreporter.write_line(f"{case:<36} {quantity:<24} {shown:>10} {ids:>22}")


def add_member(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def encoded_image(seed: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "png")
    return buffer.getvalue()


@pytest.fixture(name="add_member")
def add_member_fixture() -> Callable[[tarfile.TarFile, str, bytes], None]:
    """Writes one file into a shard."""
    return add_member


@pytest.fixture(name="encoded_image")
def encoded_image_fixture() -> Callable[..., bytes]:
    """A PNG of noise by seed and size."""
    return encoded_image


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of 150 images each in two classes; some tests damage them."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "classes.json").write_text(json.dumps({"0": "pets/cat", "1": "pets/dog"}))
    for number in range(2):
        with tarfile.open(folder / f"train-000{number}.tar.gz", "w:gz") as shard:
            for index in range(150 * number, 150 * (number + 1)):
                add_member(shard, f"{index:06d}.png", encoded_image(index))
                add_member(shard, f"{index:06d}.cls", str(index % 2).encode())
    return folder


@pytest.fixture(scope="session")
def tiny_photographs() -> InMemoryDataset:
    """Forty images of two colours each, 16x16."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (40, 2, 1, 3), dtype=np.uint8)
    return InMemoryDataset(coarse.repeat(8, axis=1).repeat(16, axis=2), random.integers(0, 2, 40))
