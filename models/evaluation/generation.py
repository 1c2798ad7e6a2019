"""Metrics of generated images: fidelity, class agreement, diversity and memorization.

Each is compared with the same metric of validation images of the same classes: a generator that copies training images is
closer to them than unseen validation images are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.arrays import Ids, Pixels
from models.evaluation.distributions import Gaussian, frechet_distance, kernel_distance
from models.evaluation.features import BATCH_SIZE, as_tensor, batches, extract_features
from models.evaluation.lite0 import Lite0, perceptual_distance
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.progress import Track, no_progress
from models.evaluation.spool import Spool
from models.generation import Generator
from models.tokenizer import Tokenizer

# Training images of each class that distributions are compared with: as many of each, as for generated images.
_REFERENCES_PER_CLASS = 400
_IMAGENET, _WORDNET_ID = 1000, re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of generated images, the same of real images, and the ratio of both."""

    generated: float
    real: float
    ratio: float

    @classmethod
    def of(cls, generated: float, real: float) -> Comparison:
        """The pair with its ratio, NaN if ``real`` is not positive (an unbiased estimate can be negative)."""
        return cls(generated=generated, real=real, ratio=generated / real if real > 0 else math.nan)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated ``images`` uint8 [N, S, S, 3] with their ``tokens`` int64 [N, K].

    ``labels`` int64 [N] are the requested classes, as indices into the data's class names.
    """

    images: Pixels
    tokens: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Subset:
    """The ``rows`` int64 [M] of ``images`` uint8 [N, S, S, 3], which are not copied."""

    images: Pixels
    rows: Ids

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Ids) -> Pixels:
        return self.images[self.rows[index]]


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


def match_classes(
    generated: Sequence[str], photographed: Sequence[str], sources: Mapping[str, str] | None = None
) -> list[int]:
    """Indices into the data's classes ``photographed`` of the generator's ``generated``, e.g. ``pets/cat`` for ``cat``.

    ``sources`` maps the generator's names to the data's; without it, the parts after the last slash must be equal,
    ignoring case, and the generator's classes have these names: their numbers, if the data's are all numbers; the sorted
    names of the data, if both have 1,000 and these are WordNet ids, such as n01440764 (ImageNet). Raises ``ValueError``.
    """
    if sources is None:
        generated = _expected_names(generated, [_last(name) for name in photographed])
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


def _expected_names(generated: Sequence[str], photographed: Sequence[str]) -> Sequence[str]:
    if all(map(str.isdecimal, photographed)):
        return list(map(str, range(len(generated))))
    if len(generated) == len(photographed) == _IMAGENET and all(map(_WORDNET_ID.fullmatch, photographed)):
        return sorted(photographed)
    return generated


def generate_samples(
    generator: Generator,
    tokenizer: Tokenizer,
    classes: Sequence[int],
    *,
    per_class: int,
    preset: str,
    folder: Path,
    track: Track = no_progress,
) -> Samples:
    """``per_class`` images of each of the generator's classes, with seeds 0, 1, 2 ...

    ``classes`` are their indices into the data's class names. The images are mapped from a temporary file in ``folder``.
    """
    requested = [label for label in range(generator.num_classes) for _ in range(per_class)]
    tokens, images = [], Spool(folder)
    for part in track(batches(len(requested)), "generating"):
        tokens.append(generator.generate(requested[part], seeds=range(part.start, part.stop), preset=preset))
        images.append(tokenizer.decode(tokens[-1]).numpy())
    return Samples(
        images=images.array(), tokens=torch.cat(tokens), labels=torch.tensor(classes)[torch.tensor(requested)]
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
    among = references.of_classes(classes)
    balanced = among.features(_first_of_each(among.labels, classes, _REFERENCES_PER_CLASS))
    distribution = Gaussian.fit(balanced)

    def measured(kind: str, images: Pixels | Subset, labels: Tensor, tokens: Tensor | None) -> _ImageSet:
        pooled, diversity = _features(network, images, labels, f"features of {kind} images", track)
        nearest = _nearest(images, pooled, tokens, references, reference_images, tokenizer, track)
        return _ImageSet(pooled, labels, diversity, *nearest)

    generated = measured("generated", samples.images, samples.labels, samples.tokens)
    real = measured("validation", Subset(photographs, chosen.numpy()), torch.from_numpy(labels)[chosen], None)

    def compared(metric: Callable[[_ImageSet], float | Tensor]) -> Comparison:
        return Comparison.of(float(metric(generated)), float(metric(real)))

    return Generation(
        images=len(samples.images),
        classes=len(classes),
        real_images=len(chosen),
        preset=preset,
        frechet_distance=compared(lambda each: frechet_distance(Gaussian.fit(each.pooled), distribution)),
        kernel_distance=compared(lambda each: kernel_distance(each.pooled, balanced)),
        class_agreement=compared(lambda each: _agreement(among, each)),
        diversity=compared(lambda each: each.diversity),
        identical_pairs=sum(_identical_pairs(samples.tokens[samples.labels == label]) for label in classes),
        nearest=_nearest_photographs(compared, generated, is_discrete=tokenizer.is_discrete),
    )


class _ImageSet(NamedTuple):
    """``pooled`` features [N, 1280] and ``labels`` int64 [N] of images; ``diversity`` within the classes. Of each image and
    its nearest training image: row, cosine distance, RMSE, share of equal tokens (empty for a VAE); all [N].
    """

    pooled: Tensor
    labels: Tensor
    diversity: float
    rows: Tensor
    distances: Tensor
    rmse: Tensor
    shared: Tensor


def _nearest_photographs(
    compared: Callable[[Callable[[_ImageSet], float | Tensor]], Comparison], generated: _ImageSet, *, is_discrete: bool
) -> NearestPhotographs:
    return NearestPhotographs(
        median_distance=compared(lambda each: each.distances.median()),
        smallest_distance=compared(lambda each: each.distances.min()),
        smallest_rmse=compared(lambda each: each.rmse.min()),
        mean_shared_tokens=compared(lambda each: each.shared.mean()) if is_discrete else None,
        most_shared_tokens=compared(lambda each: each.shared.max()) if is_discrete else None,
        rows=generated.rows,
        distances=generated.distances,
    )


def _features(
    network: Lite0, images: Pixels | Subset, labels: Tensor, description: str, track: Track
) -> tuple[Tensor, float]:
    """Pooled features [N, 1280], and the diversity."""
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
    return pooled, float(torch.cat(distances).mean()) if distances else math.nan


def _nearest(
    images: Pixels | Subset,
    pooled: Tensor,
    tokens: Tensor | None,
    references: ReferenceSet,
    reference_images: Pixels,
    tokenizer: Tokenizer,
    track: Track,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, distances, RMSE and shared tokens, as in ``_ImageSet``; ``tokens`` None: to be encoded."""
    rows, distances = (found[:, 0] for found in references.nearest(pooled, 1))
    rmse, shared = [], [torch.empty(0)]
    for part in track(batches(len(images)), "comparing with training images"):
        batch, training = np.array(images[part]), np.array(reference_images[rows[part].numpy()])
        both = (training, np.ascontiguousarray(training[:, :, ::-1]))
        rmse.append(torch.stack([_rmse(batch, each) for each in both]).amin(0))
        if tokenizer.is_discrete:
            codes = tokenizer.encode(batch) if tokens is None else tokens[part]
            shared.append(torch.stack([(tokenizer.encode(each) == codes).double().mean(1) for each in both]).amax(0))
    return rows, distances, torch.cat(rmse), torch.cat(shared)


def _rmse(images: Pixels, others: Pixels) -> Tensor:
    return torch.from_numpy(np.sqrt(np.square(images.astype(np.float32) - others).mean((1, 2, 3))))


def _agreement(references: ReferenceSet, side: _ImageSet) -> float:
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
