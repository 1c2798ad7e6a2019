"""Memorization: how close each generated image is to the most similar training image.

A generator that copies training images is closer to them than unseen validation images are, so each metric is compared
with that of validation images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.arrays import Pixels
from models.evaluation.comparison import Comparison
from models.evaluation.features import batches
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.progress import Track, no_progress
from models.tokenizer import Tokenizer


class ImageSet(NamedTuple):
    """Images uint8 [N, S, S, 3], their Lite0 features [N, 1280], and their tokens int64 [N, K]; None: to be encoded."""

    images: Pixels
    features: Tensor
    tokens: Tensor | None = None


class _Similarity(NamedTuple):
    """Of each image and its nearest training image: row, cosine distance, RMSE, share of equal tokens; all [N]."""

    rows: Tensor
    distances: Tensor
    rmse: Tensor
    shared: Tensor | None


@dataclass(frozen=True, kw_only=True)
class NearestPhotographs:
    """Distances of generated and of real images to their nearest training images.

    ``median_distance`` and ``smallest_distance`` are cosine distances of Lite0 features. For each image and its nearest
    training image, original or mirrored, whichever is closer: ``smallest_rmse`` is the root mean squared difference of
    pixels, in levels of 255; ``mean_shared_tokens`` and ``most_shared_tokens`` are the shares of the K positions with the
    same code, None for a tokenizer without codes. ``rows`` int64 [N] are the training images nearest to the generated
    ones, ``distances`` [N] their distances.
    """

    median_distance: Comparison
    smallest_distance: Comparison
    smallest_rmse: Comparison
    mean_shared_tokens: Comparison | None
    most_shared_tokens: Comparison | None
    rows: Tensor = field(repr=False)
    distances: Tensor = field(repr=False)


def compare_with_training(
    generated: ImageSet,
    real: ImageSet,
    *,
    references: ReferenceSet,
    reference_images: Pixels,
    tokenizer: Tokenizer,
    track: Track = no_progress,
) -> NearestPhotographs:
    """Compares images with the nearest of ``references``, whose pixels are ``reference_images`` uint8 [M, S, S, 3]."""
    fake, true = (_similarity(side, references, reference_images, tokenizer, track) for side in (generated, real))

    def compared(metric: Tensor, of_real: Tensor) -> Comparison:
        return Comparison.of(float(metric), float(of_real))

    mean_shared = most_shared = None
    if fake.shared is not None and true.shared is not None:
        mean_shared = compared(fake.shared.mean(), true.shared.mean())
        most_shared = compared(fake.shared.max(), true.shared.max())
    return NearestPhotographs(
        median_distance=compared(fake.distances.median(), true.distances.median()),
        smallest_distance=compared(fake.distances.min(), true.distances.min()),
        smallest_rmse=compared(fake.rmse.min(), true.rmse.min()),
        mean_shared_tokens=mean_shared,
        most_shared_tokens=most_shared,
        rows=fake.rows,
        distances=fake.distances,
    )


def _similarity(
    side: ImageSet, references: ReferenceSet, reference_images: Pixels, tokenizer: Tokenizer, track: Track
) -> _Similarity:
    nearest = references.nearest(side.features, 1)
    rows = nearest.rows[:, 0]
    rmse, shared = [], []
    for part in track(batches(len(side.images)), "comparing with training images"):
        images, training = np.array(side.images[part]), np.array(reference_images[rows[part].numpy()])
        both = (training, np.ascontiguousarray(training[:, :, ::-1]))
        rmse.append(torch.stack([_rmse(images, each) for each in both]).amin(0))
        if tokenizer.is_discrete:
            codes = tokenizer.encode(images) if side.tokens is None else side.tokens[part]
            shared.append(torch.stack([(tokenizer.encode(each) == codes).double().mean(1) for each in both]).amax(0))
    return _Similarity(rows, nearest.distances[:, 0], torch.cat(rmse), torch.cat(shared) if shared else None)


def _rmse(images: Pixels, others: Pixels) -> Tensor:
    return torch.from_numpy(np.sqrt(np.square(images.astype(np.float32) - others).mean((1, 2, 3))))
