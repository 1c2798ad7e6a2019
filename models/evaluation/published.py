"""Metrics of the published protocol: FID, Inception Score, precision and recall of images against a reference.

::

    images ──> feature network ──> features [N, C], spooled ─┬─> InceptionFigures
    reference images or .npz ───> Reference ─────────────────┘

The definitions are those of the ADM evaluator (openai/guided-diffusion, ``evaluations/evaluator.py``), which published gFID
come from; it computes the distances of precision and recall in float16, this module in float32. Published figures are of
50,000 images; fewer give larger distances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.arrays import Ids, Pixels
from models.evaluation.distributions import Gaussian, frechet_distance, inception_score
from models.evaluation.features import batches
from models.evaluation.inception import FeatureNetwork
from models.evaluation.neighbours import precision_recall
from models.evaluation.npz_files import has_images, read_images, read_statistics
from models.evaluation.progress import Track, no_progress
from models.evaluation.spool import Spool

SPLIT_SIZE = 5000
"""Images of a split of the Inception Score in the ADM evaluator."""


@dataclass(frozen=True, kw_only=True)
class InceptionFigures:
    """FID to the reference, Inception Score, precision and recall at k = 3, for ``images`` images.

    Precision and recall, of ``references`` images, are NaN if the reference is statistics alone; the score is NaN for a
    feature network without known classes.
    """

    images: int
    references: int
    fid: float
    inception_score: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Reference:
    """What images are compared with: the ``distribution`` of all features, and ``features`` [M, C] of some, M may be 0."""

    distribution: Gaussian
    features: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """The reference of these features alone."""
        return cls(Gaussian.fit(features), features)


def array_batches(
    images: Pixels, rows: Ids | None = None, *, description: str, track: Track = no_progress
) -> Iterator[Pixels]:
    """Batches of images uint8 [N, H, W, 3], which may be mapped from a file, or of their ``rows`` int64 [M]."""
    for part in track(batches(len(images if rows is None else rows)), description):
        yield np.array(images[part] if rows is None else images[rows[part]])


def extract(network: FeatureNetwork, images: Iterable[Pixels], *, folder: Path) -> Tensor:
    """Features float32 [N, C] of batches of images uint8 [B, H, W, 3], mapped from a temporary file in ``folder``.

    Raises ``DataError`` if the disk is full, and what reading the images does; ``CheckpointError`` for the network.
    """
    spool = Spool(folder)
    for batch in images:
        spool.append(network(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy())
    return torch.from_numpy(spool.array())


def inspect_reference(path: Path, network: FeatureNetwork) -> tuple[Gaussian | None, bool]:
    """The distribution in an ``.npz`` file, None without statistics, and whether it has images. Raises ``DataError``."""
    contains_images = has_images(path)
    columns = network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]
    return read_statistics(path, columns), contains_images


def read_reference(path: Path, network: FeatureNetwork, *, folder: Path) -> Reference:
    """The reference in an ``.npz`` file: its statistics if it has any, and its images. Raises ``DataError``."""
    distribution, contains_images = inspect_reference(path, network)
    if distribution is None:
        return Reference.of(extract(network, read_images(path), folder=folder))
    features = torch.empty(0, len(distribution.mean))
    return Reference(distribution, extract(network, read_images(path), folder=folder) if contains_images else features)


def published_figures(
    features: Tensor, reference: Reference, network: FeatureNetwork, *, split_size: int = SPLIT_SIZE
) -> InceptionFigures:
    """The metrics of features float32 [N, C] of ``network``; the Inception Score is the mean over splits."""
    precision = recall = score = float("nan")
    if len(reference.features):
        precision, recall = precision_recall(features, reference.features, device=network.device)
    if network.class_weights is not None:
        score = inception_score(features, network.class_weights, split_size=split_size)
    return InceptionFigures(
        images=len(features),
        references=len(reference.features),
        fid=frechet_distance(Gaussian.fit(features), reference.distribution),
        inception_score=score,
        precision=precision,
        recall=recall,
    )
