"""A report of reconstructions: each figure is what it says, over all photographs and every codec."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.evaluation.features import as_tensor
from models.evaluation.lite0 import Lite0, perceptual_distance
from models.evaluation.measures import entropy_bits, seam_ratio
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.placeholders import Codec, Decoded, Grid, WebP
from models.evaluation.reconstruction import (
    Reconstruction,
    TokenizerCodec,
    best_placeholder,
    evaluate_reconstruction,
)
from models.evaluation.similarity import psnr, ssim
from models.evaluation.spool import Spool
from models.tokenizer import Tokenizer


class Copy:
    """Gives images back as they are, in one byte."""

    name, tokens = "copy", None

    def __call__(self, images: np.ndarray) -> Decoded:
        return Decoded(images, np.ones(len(images), np.int64))


@pytest.fixture(scope="module")
def images(crops: np.ndarray) -> np.ndarray:
    """More than a batch."""
    return np.concatenate([crops, crops[:, ::-1], crops[:4, :, ::-1]])


@pytest.fixture(scope="module")
def labels(images: np.ndarray) -> np.ndarray:
    return np.arange(len(images)) % 16 // 4


def measure(lite0: Lite0, images: np.ndarray, labels: np.ndarray, *codecs: Codec, **options: object) -> Reconstruction:
    with torch.inference_mode():
        references = ReferenceSet(lite0.embed(as_tensor(images)), torch.from_numpy(labels))
    known = references.of_classes(torch.tensor([0, 1, 2]))
    return evaluate_reconstruction(
        images, labels, codecs=codecs, network=lite0, references=known, patch_size=16, **options
    )


def test_a_copy_is_perfect(lite0: Lite0, images: np.ndarray, labels: np.ndarray) -> None:
    figures = measure(lite0, images, labels, Copy())
    copy = figures.codecs[0]
    assert (copy.psnr, copy.ssim) == (math.inf, pytest.approx(1.0))
    assert (copy.perceptual_distance, copy.frechet_distance) == (0.0, pytest.approx(0.0, abs=1e-6))
    # Unbiased, so that it is less than zero for a copy.
    assert copy.kernel_distance <= 0
    assert (copy.class_agreement_ratio, copy.seams) == (1.0, 1.0)
    assert (figures.images, figures.classes, figures.classified) == (36, 3, 28)
    assert figures.original_class_agreement == copy.class_agreement > 0.9


def test_means_are_over_all_photographs(lite0: Lite0, images: np.ndarray, labels: np.ndarray) -> None:
    grid = Grid(48)
    found = measure(lite0, images, labels, grid).codecs[0]
    outputs, originals = as_tensor(grid(images).images), as_tensor(images)
    with torch.inference_mode():
        distance = perceptual_distance(lite0.features(outputs), lite0.features(originals))
    assert found.psnr == pytest.approx(float(psnr(outputs, originals).mean()), rel=1e-5)
    assert found.ssim == pytest.approx(float(ssim(outputs, originals).mean()), rel=1e-5)
    assert found.perceptual_distance == pytest.approx(float(distance.mean()), rel=1e-4)
    assert found.seams == pytest.approx(seam_ratio(outputs, 16) / seam_ratio(originals, 16), rel=1e-4)
    assert (found.mean_bytes, found.max_bytes) == (48.0, 48)


def test_codes_are_counted(
    lite0: Lite0, images: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    figures = measure(lite0, images, labels, TokenizerCodec(tokenizer), keep=Spool(tmp_path))
    ids = tokenizer.encode(images)
    assert figures.codes is not None
    assert figures.codes.used == len(torch.unique(ids))
    assert figures.codes.entropy_bits == pytest.approx(entropy_bits(torch.bincount(ids.flatten())))
    assert figures.codecs[0].max_bytes == tokenizer.code_format.num_bytes == 12
    assert figures.reconstructions is not None
    assert np.array_equal(figures.reconstructions, tokenizer.decode(ids).numpy())


def test_a_vae_has_bytes_and_no_codes(lite0: Lite0, images: np.ndarray, labels: np.ndarray, vae: Tokenizer) -> None:
    figures = measure(lite0, images, labels, TokenizerCodec(vae))
    assert figures.codes is None
    assert figures.codecs[0].max_bytes == 4 * 16 * 12
    assert math.isfinite(figures.codecs[0].psnr)


def test_a_posterior_is_sampled_by_the_number_of_the_image(
    images: np.ndarray, tokenizer: Tokenizer, vae: Tokenizer
) -> None:
    codec = TokenizerCodec(vae, sample_posterior=True)
    found = [codec(images[:2]).images, codec(images[2:5]).images]
    latents = vae.latents(images[:5], seeds=range(5))
    assert np.array_equal(np.concatenate(found), vae.decode(latents).numpy())
    assert not np.array_equal(found[0], TokenizerCodec(vae)(images[:2]).images)
    with pytest.raises(ValueError, match="tiny has no posterior to sample"):
        TokenizerCodec(tokenizer, sample_posterior=True)


def test_examples_are_the_asked_rows_of_every_codec(lite0: Lite0, images: np.ndarray, labels: np.ndarray) -> None:
    figures = measure(lite0, images, labels, Copy(), Grid(48), examples=[0, 31, 32, 35])
    assert list(figures.examples) == ["original", "copy", "4x4 RGB"]
    assert np.array_equal(figures.examples["copy"], images[[0, 31, 32, 35]])
    assert figures.examples["4x4 RGB"].shape == (4, 64, 64, 3)


def test_the_best_placeholder_never_takes_more_bytes(
    lite0: Lite0, images: np.ndarray, labels: np.ndarray, vae: Tokenizer, tokenizer: Tokenizer
) -> None:
    large, small = (
        measure(lite0, images[:8], labels[:8], TokenizerCodec(model), WebP(), Grid(12), Grid(48))
        for model in (vae, tokenizer)
    )
    best = best_placeholder(large)
    assert best is not None
    assert best.name == "WebP, quality 0"
    best = best_placeholder(small)
    assert best is not None
    assert best.name == "2x2 RGB"
    assert best_placeholder(measure(lite0, images[:8], labels[:8], TokenizerCodec(tokenizer))) is None


def test_photographs_of_no_known_class_leave_agreement_open(lite0: Lite0, images: np.ndarray) -> None:
    figures = measure(lite0, images, np.full(len(images), 3), Copy())
    assert figures.classified == 0
    assert math.isnan(figures.codecs[0].class_agreement_ratio)
