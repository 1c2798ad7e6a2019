"""Whether generated images are copies: how close each is to the training photograph that looks most like it.

A generator that had learned photographs by heart would come closer to them than other photographs, which it never saw,
come by chance. So each figure stands beside that of validation photographs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.evaluation.comparison import Comparison
from models.evaluation.features import batches
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.progress import Track, no_progress
from models.tokenizer import Tokenizer

__all__ = ["NearestPhotographs", "compare_with_training"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Closeness:
    """Of each image to its nearest photograph: row, cosine distance, RMSE, share of equal tokens; all [N]."""

    rows: Tensor
    distances: Tensor
    rmse: Tensor
    shared: Tensor | None


@dataclass(frozen=True, kw_only=True)
class NearestPhotographs:
    """How close the nearest training photographs come to generated, and to real images.

    ``median_distance`` and ``smallest_distance`` are cosine distances of Lite0 features. Of each image and its nearest
    photograph, upright or mirrored, whichever is closer: ``smallest_rmse`` is the root of the mean squared difference of
    pixels, in levels of 255; ``mean_shared_tokens`` and ``most_shared_tokens`` are shares of the K positions with the
    same code, None for a tokenizer without codes. ``rows`` int64 [N] are the generated images' photographs,
    ``distances`` [N] how far they are.
    """

    median_distance: Comparison
    smallest_distance: Comparison
    smallest_rmse: Comparison
    mean_shared_tokens: Comparison | None
    most_shared_tokens: Comparison | None
    rows: Tensor = field(repr=False)
    distances: Tensor = field(repr=False)


def compare_with_training(
    generated: tuple[Pixels, Tensor, Tensor],
    real: tuple[Pixels, Tensor],
    *,
    references: ReferenceSet,
    reference_images: Pixels,
    tokenizer: Tokenizer,
    track: Track = no_progress,
) -> NearestPhotographs:
    """Finds the nearest of ``references``, whose pixels are ``reference_images`` uint8 [M, S, S, 3].

    ``generated`` and ``real`` are images uint8 [N, S, S, 3] with their Lite0 features [N, 1280]; the generated ones have
    the tokens int64 [N, K] that they were decoded from, photographs are encoded here.
    """
    theirs, ours = (
        _closeness(*side, references=references, reference_images=reference_images, tokenizer=tokenizer, track=track)
        for side in (generated, (*real, None))
    )
    mean_shared = most_shared = None
    if theirs.shared is not None and ours.shared is not None:
        mean_shared = Comparison.of(float(theirs.shared.mean()), float(ours.shared.mean()))
        most_shared = Comparison.of(float(theirs.shared.max()), float(ours.shared.max()))
    return NearestPhotographs(
        median_distance=Comparison.of(float(theirs.distances.median()), float(ours.distances.median())),
        smallest_distance=Comparison.of(float(theirs.distances.min()), float(ours.distances.min())),
        smallest_rmse=Comparison.of(float(theirs.rmse.min()), float(ours.rmse.min())),
        mean_shared_tokens=mean_shared,
        most_shared_tokens=most_shared,
        rows=theirs.rows,
        distances=theirs.distances,
    )


def _closeness(
    images: Pixels,
    pooled: Tensor,
    tokens: Tensor | None,
    *,
    references: ReferenceSet,
    reference_images: Pixels,
    tokenizer: Tokenizer,
    track: Track,
) -> _Closeness:
    nearest = references.nearest(pooled, 1)
    rows = nearest.rows[:, 0]
    rmse, shared = [], []
    for part in track(batches(len(images)), "comparing with training photographs"):
        ours, photographs = np.array(images[part]), np.array(reference_images[rows[part].numpy()])
        views = (photographs, np.ascontiguousarray(photographs[:, :, ::-1]))
        rmse.append(torch.stack([_rmse(ours, view) for view in views]).amin(0))
        if tokenizer.is_discrete:
            codes = tokenizer.encode(ours) if tokens is None else tokens[part]
            equal = [(tokenizer.encode(view) == codes).double().mean(1) for view in views]
            shared.append(torch.stack(equal).amax(0))
    return _Closeness(
        rows=rows,
        distances=nearest.distances[:, 0],
        rmse=torch.cat(rmse),
        shared=torch.cat(shared) if shared else None,
    )


def _rmse(images: Pixels, others: Pixels) -> Tensor:
    gaps = images.astype(np.float32) - others
    return torch.from_numpy(np.sqrt(np.square(gaps).mean((1, 2, 3))))
