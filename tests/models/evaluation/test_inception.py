"""The published protocol asks torch-fidelity for what the papers report, and says what is missing."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import CheckpointError, missing_package
from models.evaluation.inception import check_inception, inception_figures


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path := tmp_path / "inception.pth")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch-fidelity, which needs a torchvision that fits, would have been asked."""
    asked: list[dict[str, Any]] = []

    def calculate_metrics(**options: Any) -> dict[str, float]:
        asked.append(options)
        names = ("frechet_inception_distance", "inception_score_mean", "precision", "recall")
        return {name: float(number) for number, name in enumerate(names)}

    fake = ModuleType("torch_fidelity")
    fake.calculate_metrics = calculate_metrics  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    return asked


def test_it_asks_for_the_published_figures_on_the_given_weights(
    calls: list[dict[str, Any]], weights: Path, crops: np.ndarray
) -> None:
    figures = inception_figures(crops[:3], crops, weights, device=torch.device("cpu"))
    assert (figures.images, figures.fid, figures.inception_score) == (3, 0.0, 1.0)
    assert (figures.precision, figures.recall) == (2.0, 3.0)
    asked = calls[0]
    assert asked["feature_extractor"] == "inception-v3-compat"
    assert asked["feature_extractor_weights_path"] == str(weights)
    assert (asked["fid"], asked["isc"], asked["prc"], asked["isc_splits"]) == (True, True, True, 1)
    images, references = asked["input1"], asked["input2"]
    assert (len(images), len(references)) == (3, 16)
    assert torch.equal(images[2].permute(1, 2, 0), torch.from_numpy(crops[2].copy()))


def test_a_missing_package_is_named_with_its_extra(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        check_inception(weights)
    assert re.match(
        r"the package torch_fidelity .*pip install -e '\.\[published\]'", missing_package(raised.value) or ""
    )


@pytest.mark.usefixtures("calls")
def test_weights_that_are_not_there_are_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: No such file.*weights-inception-2015-12-05"):
        check_inception(tmp_path / "nowhere.pth")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.usefixtures("calls")
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "harmful.pth"
    path.write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"harmful\.pth: not a file of tensors"):
        check_inception(path)
