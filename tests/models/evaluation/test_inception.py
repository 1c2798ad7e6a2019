"""The Inception network computes what torch-fidelity's does, and its file is checked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.errors import CheckpointError
from models.evaluation.inception import load_feature_network
from tests.feature_networks import inception_tensors, write_torchscript

GOLDEN = Path(__file__).parents[2] / "golden" / "cases" / "fid_inception.npz"
CPU = torch.device("cpu")


def test_its_features_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    tensors = inception_tensors()
    unused = {"AuxLogits.fc.weight": torch.zeros(2), "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(3)}
    torch.save(tensors | unused, path := tmp_path / "inception.pth")
    network = load_feature_network(path, CPU)
    with np.load(GOLDEN) as case:
        found = network(torch.from_numpy(case["images"])).numpy()
        assert np.abs(found - case["features"]).max() < 1e-5 * np.abs(case["features"]).max()
    assert network.class_weights is not None
    assert torch.equal(network.class_weights, tensors["fc.weight"])


def test_tensors_that_are_missing_or_of_another_network_are_named(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(1000, 2048)}, path := tmp_path / "inception.safetensors")
    with pytest.raises(CheckpointError, match=r"missing Conv2d_1a_3x3\.conv\.weight \[32, 3, 3, 3\].* more"):
        load_feature_network(path, CPU)


def test_torchscript_gives_features_and_the_class_weights_of_its_last_layer(tmp_path: Path) -> None:
    images = torch.arange(2 * 3 * 16).reshape(2, 3, 4, 4).to(torch.uint8)
    network = load_feature_network(write_torchscript(tmp_path / "detector.pt"), CPU)
    assert network.class_weights is not None
    assert network.class_weights.shape == (5, 12)
    torch.testing.assert_close(network(images)[1, 0], images[1, 0, :2, :2].float().mean())
    plain = load_feature_network(write_torchscript(tmp_path / "plain.pt", "plain"), CPU)
    assert plain.class_weights is None
    torch.testing.assert_close(plain(images), images.float().mean((2, 3)))


def test_torchscript_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.pt is no TorchScript of features \[B, C\] of uint8"):
        load_feature_network(write_torchscript(tmp_path / "other.pt", "other"), CPU)


def test_weights_that_are_not_there_are_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth, and nothing is downloaded.*weights-inception-2015-12-05"):
        load_feature_network(Path("some/nowhere.pth"), CPU)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the file was run",)


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "harmful.pth"
    path.write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"harmful\.pth cannot be read as weights"):
        load_feature_network(path, CPU)
