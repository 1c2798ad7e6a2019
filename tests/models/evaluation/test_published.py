"""The published protocol from images and ``.npz`` files to figures."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import DataError
from models.evaluation import spool
from models.evaluation.distributions import Gaussian, frechet_distance, inception_score
from models.evaluation.features import BATCH_SIZE
from models.evaluation.inception import FeatureNetwork, load_feature_network
from models.evaluation.neighbours import precision_recall
from models.evaluation.npz_files import has_images, read_images, write_npz
from models.evaluation.published import Reference, array_batches, extract, published_figures, read_reference
from tests.feature_networks import write_torchscript


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> FeatureNetwork:
    path = write_torchscript(tmp_path_factory.mktemp("network") / "detector.pt")
    return load_feature_network(path, torch.device("cpu"))


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def features(network: FeatureNetwork, pixels: np.ndarray) -> torch.Tensor:
    return network(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_figures_are_those_of_the_features_of_all_images(network: FeatureNetwork, tmp_path: Path) -> None:
    x, y = images(2 * BATCH_SIZE + 5, 0), images(50, 1)
    write_npz(tmp_path / "reference.npz", y)
    reference = read_reference(tmp_path / "reference.npz", network, folder=tmp_path / "cache")
    extracted = extract(network, array_batches(x, description=""), folder=tmp_path / "cache")
    figures = published_figures(extracted, reference, network, split_size=40)
    a, b = features(network, x), features(network, y)
    assert torch.equal(extracted, a)
    assert (figures.images, figures.references) == (69, 50)
    assert figures.fid == pytest.approx(frechet_distance(Gaussian.fit(a), Gaussian.fit(b)))
    assert network.class_weights is not None
    assert figures.inception_score == pytest.approx(inception_score(a, network.class_weights, split_size=40))
    assert (figures.precision, figures.recall) == precision_recall(a, b)
    assert not list((tmp_path / "cache").iterdir())


def test_rows_of_a_mapped_array_are_copied_batch_by_batch(tmp_path: Path) -> None:
    rows = np.arange(0, 80, 2)
    found = list(array_batches(images(80, 0), rows, description=""))
    assert list(map(len, found)) == [BATCH_SIZE, 40 - BATCH_SIZE]
    assert np.array_equal(np.concatenate(found), images(80, 0)[rows])


def test_statistics_of_a_reference_count_before_its_images(network: FeatureNetwork, tmp_path: Path) -> None:
    """ADM's reference has the statistics of all training images, and 10,000 of them."""
    many, few = features(network, images(90, 0)).double().numpy(), images(40, 1)
    statistics = {"mu": many.mean(0), "sigma": np.cov(many, rowvar=False).astype(np.float32)}
    np.savez_compressed(tmp_path / "both.npz", few, **statistics, mu_s=np.zeros(3))
    np.savez(tmp_path / "statistics.npz", **statistics)
    x = features(network, images(60, 2))
    both, alone = (
        published_figures(x, read_reference(tmp_path / name, network, folder=tmp_path), network)
        for name in ("both.npz", "statistics.npz")
    )
    expected = frechet_distance(Gaussian.fit(x), Gaussian.fit(torch.from_numpy(many)))
    assert both.fid == pytest.approx(expected, rel=1e-4)
    assert alone.fid == both.fid
    assert (both.precision, both.recall) == precision_recall(x, features(network, few))
    assert (alone.references, math.isnan(alone.precision), math.isnan(alone.recall)) == (0, True, True)


def test_images_of_a_compressed_file_are_read_in_batches(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "images.npz", images(BATCH_SIZE + 3, 0))
    found = list(read_images(tmp_path / "images.npz"))
    assert list(map(len, found)) == [BATCH_SIZE, 3]
    assert np.array_equal(np.concatenate(found), images(BATCH_SIZE + 3, 0))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "neither images, arr_0, nor statistics, mu and sigma"),
        ({"mu": np.zeros(12)}, "neither images"),
        ({"arr_0": np.zeros((2, 8, 8, 3))}, r"arr_0 is float64 \[2, 8, 8, 3\], expected uint8 \[N, H, W, 3\]"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "expected uint8"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "expected uint8"),
        ({"arr_0": np.array([{}])}, "arr_0 is object"),
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, r"mu is float64 \[2048\], expected float \[12\]"),
        ({"mu": np.zeros(12), "sigma": np.eye(13)}, r"sigma is float64 \[13, 13\], expected float \[12, 12\]"),
        ({"mu": np.zeros(12), "sigma": np.full((12, 12), np.nan)}, "sigma has values that are not finite"),
    ],
)
def test_another_npz_file_is_refused(
    network: FeatureNetwork, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(path := tmp_path / "other.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"other\.npz as \.npz: .*{message}"):
        read_reference(path, network, folder=tmp_path)


def test_a_file_that_is_not_an_archive_or_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        has_images(tmp_path / "nowhere.npz")
    np.save(tmp_path / "array.npy", images(2, 0))
    with pytest.raises(DataError, match="not a zip file"):
        has_images(tmp_path / "array.npy")
    np.savez(tmp_path / "whole.npz", images(40, 0))
    with (
        zipfile.ZipFile(tmp_path / "whole.npz") as whole,
        zipfile.ZipFile(tmp_path / "short.npz", "w") as short,
    ):
        short.writestr("arr_0.npy", whole.read("arr_0.npy")[:-9])
    with pytest.raises(DataError, match=r"short\.npz"):
        list(read_images(tmp_path / "short.npz"))


def test_a_network_without_classes_has_no_inception_score(tmp_path: Path) -> None:
    plain = load_feature_network(write_torchscript(tmp_path / "plain.pt", "plain"), torch.device("cpu"))
    x = features(plain, images(20, 0))
    assert math.isnan(published_figures(x, Reference.of(x), plain).inception_score)


def test_no_images_and_a_full_disk_are_errors_that_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        spool.Spool(tmp_path).array()
    full = spool.Spool(tmp_path)
    full._file.close()
    with Path("/dev/full").open("wb", buffering=0) as device:
        full._file = device  # type: ignore[assignment]
        with pytest.raises(DataError, match="No space left on device; choose another cache folder"):
            full.append(images(1, 0))
