"""``titok fid`` on folders, archives and ``.npz`` files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from models.errors import DataError
from service.bulk.errors import BulkError
from service.cli.main import app
from service.cli.options import CommandError
from tests.feature_networks import write_torchscript


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images as a folder, an archive and an .npz file, and another 30 as an .npz file."""
    root = tmp_path_factory.mktemp("sets")
    write_torchscript(root / "detector.pt")
    random = np.random.default_rng(0)
    images, others = (random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in (40, 30))
    np.savez(root / "images.npz", images)
    np.savez(root / "others.npz", others)
    np.savez(root / "statistics.npz", mu=np.zeros(12), sigma=np.eye(12))
    (root / "folder" / "class").mkdir(parents=True)
    with tarfile.open(root / "images.tar", "w") as archive:
        for number, image in enumerate(images):
            Image.fromarray(image).save(file := io.BytesIO(), "png")
            (root / "folder" / "class" / f"{number:03d}.png").write_bytes(file.getvalue())
            info = tarfile.TarInfo(f"{number:03d}.png")
            info.size = len(file.getvalue())
            archive.addfile(info, io.BytesIO(file.getvalue()))
    return root


def run(sets: Path, images: str, reference: str, tmp_path: Path, *more: str) -> dict[str, Any]:
    """Runs the command and returns its figures; errors are raised."""
    arguments = ["fid", sets / images, sets / reference, "--inception-weights", sets / "detector.pt", "--size", "32"]
    options = ["--cache", tmp_path / "cache", "--output", tmp_path / "figures.json", *more]
    result = CliRunner().invoke(app, list(map(str, [*arguments, *options])), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert f"| {sets / images} | {found['images']} | {found['fid']:.2f} |" in result.output
    return found


def test_the_same_images_in_any_form_have_the_same_figures(sets: Path, tmp_path: Path) -> None:
    expected = run(sets, "images.npz", "others.npz", tmp_path)
    assert (expected["images"], expected["references"]) == (40, 30)
    assert expected["fid"] > 1
    assert run(sets, "folder", "others.npz", tmp_path) == expected
    assert run(sets, "images.tar", "others.npz", tmp_path) == expected
    same = run(sets, "folder", "images.tar", tmp_path)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert (same["precision"], same["recall"]) == (1.0, 1.0)


def test_a_split_of_the_reference_is_chosen_by_name(sets: Path, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 3)):
        (tmp_path / "both" / split / "cat").mkdir(parents=True)
        for number in range(count):
            name = f"{number:03d}.png"
            (tmp_path / "both" / split / "cat" / name).symlink_to(sets / "folder" / "class" / name)
    with pytest.raises(DataError, match=r"several splits: train \(4\), val \(3\); choose one with --split"):
        run(sets, "images.npz", str(tmp_path / "both"), tmp_path)
    assert run(sets, "images.npz", str(tmp_path / "both"), tmp_path, "--split", "val")["references"] == 3
    assert run(sets, str(tmp_path / "both"), "images.npz", tmp_path)["images"] == 7


def test_statistics_are_a_reference_without_precision(sets: Path, tmp_path: Path) -> None:
    found = run(sets, "images.npz", "statistics.npz", tmp_path)
    assert (found["references"], found["precision"], found["recall"]) == (0, None, None)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(DataError, match=r"mu is float64 \[2048\], expected float \[12\] for this feature network"):
        run(sets, "images.npz", str(tmp_path / "wide.npz"), tmp_path)
    with pytest.raises(CommandError, match="statistics and no images: it can only be the reference"):
        run(sets, "statistics.npz", "images.npz", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.npz", "does not exist"), ("nowhere", "nothing at"), ("detector.pt", "not a folder|no")],
)
def test_what_is_not_a_set_of_images_is_refused(sets: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises((BulkError, DataError), match=message):
        run(sets, name, "images.npz", tmp_path)


def test_an_image_that_cannot_be_read_is_named(sets: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "one.png").write_bytes(b"not an image")
    with pytest.raises(CommandError, match="broken: one: cannot identify the image format"):
        run(sets, str(tmp_path / "broken"), "images.npz", tmp_path)
