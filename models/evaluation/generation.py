"""Metrics of generated images: fidelity, class agreement, diversity and memorization.

Each is compared with the same metric of validation images of the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.arrays import Ids, Pixels
from models.evaluation.comparison import Comparison
from models.evaluation.distributions import frechet_distance, kernel_distance
from models.evaluation.features import BATCH_SIZE, as_tensor, batches, extract_features
from models.evaluation.lite0 import Lite0
from models.evaluation.memorization import ImageSet, NearestPhotographs, compare_with_training
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.perceptual import perceptual_distance
from models.evaluation.progress import Track, no_progress
from models.generation import Generator
from models.tokenizer import Tokenizer

# Training images of each class that distributions are compared with: as many of each, as for generated images.
_REFERENCES_PER_CLASS = 400


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated ``images`` uint8 [N, S, S, 3] with their ``tokens`` int64 [N, K].

    ``labels`` int64 [N] are the requested classes, as indices into the data's class names.
    """

    images: Pixels
    tokens: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Metrics of ``images`` generated images of ``classes`` classes.

    ``frechet_distance`` and ``kernel_distance`` are to training images, equally many of each class; ``class_agreement`` is
    the share of images that are classified as the requested class by their nearest training images of these classes,
    the mean over classes; ``diversity`` is the mean perceptual distance of two images of one class; ``identical_pairs``
    counts pairs with equal tokens within a class; ``nearest`` compares with the nearest training images.
    """

    images: int
    classes: int
    real_images: int
    preset: str
    frechet_distance: Comparison
    kernel_distance: Comparison
    class_agreement: Comparison
    diversity: Comparison
    identical_pairs: int
    nearest: NearestPhotographs
    samples: Samples = field(repr=False)


def match_classes(
    generated: Sequence[str], photographed: Sequence[str], sources: Mapping[str, str] | None = None
) -> list[int]:
    """Indices into the data's classes ``photographed`` of the generator's ``generated``, e.g. ``pets/cat`` for ``cat``.

    ``sources`` maps the generator's names to the data's; without it, the parts after the last slash must be equal,
    ignoring case. Raises ``ValueError``.
    """
    found = []
    for name in generated:
        fitting = [
            number
            for number, other in enumerate(photographed)
            if (other == sources.get(name) if sources is not None else _last(other) == _last(name))
        ]
        if len(fitting) != 1:
            which = len(fitting) or "none"
            raise ValueError(
                f"the generator's class {name!r} is {which} of the data's classes; --classes CONFIG.toml names the data's "
                f"class for each, as training.classes of a training configuration does"
            )
        found += fitting
    return found


def generate_samples(
    generator: Generator,
    tokenizer: Tokenizer,
    classes: Sequence[int],
    *,
    per_class: int,
    preset: str,
    track: Track = no_progress,
) -> Samples:
    """``per_class`` images of each of the generator's classes, with seeds 0, 1, 2 ...

    ``classes`` are their indices into the data's class names.
    """
    requested = [label for label in range(generator.num_classes) for _ in range(per_class)]
    tokens, images = [], []
    for part in track(batches(len(requested)), "generating"):
        tokens.append(generator.generate(requested[part], seeds=range(part.start, part.stop), preset=preset))
        images.append(tokenizer.decode(tokens[-1]).numpy())
    return Samples(
        images=np.concatenate(images), tokens=torch.cat(tokens), labels=torch.tensor(classes)[torch.tensor(requested)]
    )


def evaluate_generation(
    samples: Samples,
    *,
    preset: str,
    network: Lite0,
    tokenizer: Tokenizer,
    references: ReferenceSet,
    reference_images: Pixels,
    photographs: Pixels,
    labels: Ids,
    track: Track = no_progress,
) -> Generation:
    """Compares generated images, and validation images of the same classes, with training images.

    ``references`` are all training images and ``reference_images`` uint8 [M, S, S, 3] their pixels; ``photographs`` and
    ``labels`` are the validation set, of which as many images of each class are used as were generated, or all.
    """
    classes = torch.unique(samples.labels)
    chosen = _first_of_each(torch.from_numpy(labels), classes, len(samples.labels) // len(classes))
    real_images, real_labels = np.array(photographs[chosen.numpy()]), torch.from_numpy(labels)[chosen]
    generated = _features(network, samples.images, samples.labels, "features of generated images", track)
    real = _features(network, real_images, real_labels, "features of validation images", track)
    among = references.of_classes(classes)
    balanced = among.features[_first_of_each(among.labels, classes, _REFERENCES_PER_CLASS)]
    sides = generated, real
    return Generation(
        images=len(samples.images),
        classes=len(classes),
        real_images=len(real_images),
        preset=preset,
        frechet_distance=Comparison.of(*(frechet_distance(side.pooled, balanced) for side in sides)),
        kernel_distance=Comparison.of(*(kernel_distance(side.pooled, balanced) for side in sides)),
        class_agreement=Comparison.of(*(_agreement(among, side) for side in sides)),
        diversity=Comparison.of(generated.diversity, real.diversity),
        identical_pairs=sum(_identical_pairs(samples.tokens[samples.labels == label]) for label in classes),
        nearest=compare_with_training(
            ImageSet(samples.images, generated.pooled, samples.tokens),
            ImageSet(real_images, real.pooled),
            references=references,
            reference_images=reference_images,
            tokenizer=tokenizer,
            track=track,
        ),
        samples=samples,
    )


class _ClassFeatures(NamedTuple):
    """``pooled`` features [N, 1280] and ``labels`` int64 [N]; ``diversity`` within the classes."""

    pooled: Tensor
    labels: Tensor
    diversity: float


def _features(network: Lite0, images: Pixels, labels: Tensor, description: str, track: Track) -> _ClassFeatures:
    pooled = torch.empty(len(images), network.head.out_channels)
    distances = []
    for label in track(torch.unique(labels).tolist(), description):
        rows = torch.nonzero(labels == label).flatten()
        found = [extract_features(network, as_tensor(images[part.numpy()])) for part in torch.split(rows, BATCH_SIZE)]
        pooled[rows] = torch.cat([features.pooled for features in found])
        blocks = found[0].blocks  # one batch suffices to measure the diversity of a class
        for row in range(len(blocks[0]) - 1):
            one, others = [block[row : row + 1] for block in blocks], [block[row + 1 :] for block in blocks]
            distances.append(perceptual_distance(one, others))
    return _ClassFeatures(pooled, labels, float(torch.cat(distances).mean()) if distances else math.nan)


def _agreement(references: ReferenceSet, side: _ClassFeatures) -> float:
    right = (references.classify(side.pooled) == side.labels).double()
    return float(torch.stack([right[side.labels == label].mean() for label in torch.unique(side.labels)]).mean())


def _identical_pairs(tokens: Tensor) -> int:
    counts = torch.unique(tokens, dim=0, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _first_of_each(labels: Tensor, classes: Tensor, count: int) -> Tensor:
    """Rows of the first ``count`` images of each class (all if there are fewer), class by class."""
    return torch.cat([torch.nonzero(labels == label).flatten()[:count] for label in classes])


def _last(name: str) -> str:
    return name.rpartition("/")[2].casefold()
