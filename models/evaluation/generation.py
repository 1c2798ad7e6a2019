"""How good generated images are: like photographs, of the class that was asked for, varied, and no copies.

Every figure stands beside the same figure of real validation photographs of the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.evaluation.comparison import Comparison
from models.evaluation.distributions import frechet_distance, kernel_distance
from models.evaluation.features import BATCH_SIZE, as_tensor, batches, extract
from models.evaluation.lite0 import Lite0
from models.evaluation.memorization import NearestPhotographs, compare_with_training
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.perceptual import perceptual_distance
from models.evaluation.progress import Track, no_progress
from models.generation import Generator
from models.tokenizer import Tokenizer

__all__ = ["Generation", "Samples", "evaluate_generation", "generate_samples", "match_classes"]

Pixels = NDArray[np.uint8]

# The Fréchet distance takes as many training photographs of each class, since generated images are as many of each.
_PHOTOGRAPHS_PER_CLASS = 400


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Generated ``images`` uint8 [N, S, S, 3] with their ``tokens`` int64 [N, K].

    ``labels`` int64 [N] are the classes that were asked for, as positions in the data's list of classes.
    """

    images: Pixels
    tokens: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The figures of ``images`` generated images of ``classes`` classes.

    ``frechet_distance`` and ``kernel_distance`` are to training photographs, equally many of each class;
    ``class_agreement`` is the mean over classes of the share whose nearest training photographs, among these classes, are
    of the class; ``diversity`` is the mean perceptual distance of two images of one class; ``identical_pairs`` are pairs
    with the same tokens within a class; ``nearest`` says how close the closest training photographs are.
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
    """Positions in ``photographed`` of the generator's classes ``generated``, such as ``pets/cat`` for ``cat``.

    ``sources`` says which is which; without it, names match by what follows the last slash, in any case. Raises
    ``ValueError``.
    """
    found = []
    for name in generated:
        if sources is not None:
            fitting = [number for number, other in enumerate(photographed) if other == sources.get(name)]
        else:
            fitting = [number for number, other in enumerate(photographed) if _last(other) == _last(name)]
        if len(fitting) != 1:
            which = "none" if not fitting else f"{len(fitting)}"
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
    """``per_class`` images of each of the generator's classes, each with a seed of its own: 0, 1, 2 ...

    ``classes`` are their positions in the data's list.
    """
    asked = [label for label in range(generator.num_classes) for _ in range(per_class)]
    tokens, images = [], []
    for part in track(batches(len(asked)), "generating"):
        tokens.append(generator.generate(asked[part], seeds=range(part.start, part.stop), preset=preset))
        images.append(tokenizer.decode(tokens[-1]).numpy())
    return Samples(
        images=np.concatenate(images), tokens=torch.cat(tokens), labels=torch.tensor(classes)[torch.tensor(asked)]
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
    labels: NDArray[np.int64],
    track: Track = no_progress,
) -> Generation:
    """Compares generated images with training photographs, and validation photographs with the same.

    ``references`` are all training photographs and ``reference_images`` uint8 [M, S, S, 3] their pixels; ``photographs``
    and ``labels`` are the validation set, of which as many of each class are taken as were generated, or all there are.
    """
    classes = torch.unique(samples.labels)
    chosen = _first_of_each(torch.from_numpy(labels), classes, len(samples.labels) // len(classes))
    real_images, real_labels = np.array(photographs[chosen.numpy()]), torch.from_numpy(labels)[chosen]
    generated = _look_at(network, samples.images, samples.labels, "looking at generated images", track)
    real = _look_at(network, real_images, real_labels, "looking at photographs", track)
    among = references.of_classes(classes)
    balanced = among.features[_first_of_each(among.labels, classes, _PHOTOGRAPHS_PER_CLASS)]
    return Generation(
        images=len(samples.images),
        classes=len(classes),
        real_images=len(real_images),
        preset=preset,
        frechet_distance=Comparison.of(*(frechet_distance(side.pooled, balanced) for side in (generated, real))),
        kernel_distance=Comparison.of(*(kernel_distance(side.pooled, balanced) for side in (generated, real))),
        class_agreement=Comparison.of(*(_agreement(among, side) for side in (generated, real))),
        diversity=Comparison.of(generated.diversity, real.diversity),
        identical_pairs=sum(_identical_pairs(samples.tokens[samples.labels == label]) for label in classes),
        nearest=compare_with_training(
            (samples.images, generated.pooled, samples.tokens),
            (real_images, real.pooled),
            references=references,
            reference_images=reference_images,
            tokenizer=tokenizer,
            track=track,
        ),
        samples=samples,
    )


@dataclass(frozen=True, kw_only=True)
class _Look:
    """``pooled`` features [N, 1280] and ``labels`` int64 [N]; ``diversity`` within the classes."""

    pooled: Tensor
    labels: Tensor
    diversity: float


def _look_at(network: Lite0, images: Pixels, labels: Tensor, description: str, track: Track) -> _Look:
    pooled = torch.empty(len(images), network.head.out_channels)
    distances = []
    for label in track(torch.unique(labels).tolist(), description):
        rows = torch.nonzero(labels == label).flatten()
        found = [extract(network, as_tensor(images[part.numpy()])) for part in torch.split(rows, BATCH_SIZE)]
        pooled[rows] = torch.cat([features.pooled for features in found])
        blocks = found[0].blocks  # a batch is enough to tell how varied a class is
        for row in range(len(blocks[0]) - 1):
            one, others = (
                tuple(block[part] for block in blocks) for part in (slice(row, row + 1), slice(row + 1, None))
            )
            distances.append(perceptual_distance(one, others))
    return _Look(pooled=pooled, labels=labels, diversity=float(torch.cat(distances).mean()) if distances else math.nan)


def _agreement(references: ReferenceSet, side: _Look) -> float:
    right = (references.classify(side.pooled) == side.labels).double()
    return float(torch.stack([right[side.labels == label].mean() for label in torch.unique(side.labels)]).mean())


def _identical_pairs(tokens: Tensor) -> int:
    counts = torch.unique(tokens, dim=0, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _first_of_each(labels: Tensor, classes: Tensor, count: int) -> Tensor:
    """Rows of the first ``count`` of each class, or of all there are, class by class."""
    return torch.cat([torch.nonzero(labels == label).flatten()[:count] for label in classes])


def _last(name: str) -> str:
    return name.rpartition("/")[2].casefold()
