"""Nearest neighbours among image features: precision and recall, and k-nearest-neighbour classification.

Features are tensors [N, C] of any float type, possibly mapped from a file. Distances are float32, computed in blocks on a
device and never kept, so that memory does not depend on the numbers of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from models.evaluation.distributions import BLOCK

CLASSIFIER_NEIGHBOURS = 5

Device: TypeAlias = torch.device | str
Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Distances [B, D] of features [B, C] and [D, C]."""


class ReferenceSet:
    """Reference images: features [N, C] and ``labels`` int64 [N]; distances are cosine distances, on ``device``."""

    def __init__(self, features: Tensor, labels: Tensor, *, device: Device = "cpu", rows: Tensor | None = None) -> None:
        self._features, self._device = features, device
        self._rows = torch.arange(len(labels)) if rows is None else rows
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def features(self, rows: Tensor) -> Tensor:
        """The features [B, C] of the references ``rows`` int64 [B]."""
        return self._features[self._rows[rows]]

    def of_classes(self, labels: Tensor) -> ReferenceSet:
        """The references of the given classes."""
        wanted = torch.isin(self.labels, labels)
        return ReferenceSet(self._features, self.labels[wanted], device=self._device, rows=self._rows[wanted])

    def nearest(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` nearest references of each row of [B, C], all if there are fewer: rows int64 [B, k], the nearest
        first, and distances float32 [B, k], 1 - cosine.
        """
        return _nearest(features, self._features, count, _cosine_distances, self._device, self._rows)

    def classify(self, features: Tensor, *, neighbours: int = CLASSIFIER_NEIGHBOURS) -> Tensor:
        """The majority label int64 [B] of the nearest ``neighbours`` of [B, C]; ties go to the nearest one."""
        rows, _ = self.nearest(features, neighbours)
        votes = self.labels[rows]  # [B, k]
        # Weights break ties in favour of the nearest; together they add less than one vote.
        weights = 1 + 0.4 * 0.5 ** torch.arange(rows.shape[1], dtype=torch.float64)
        counts = torch.zeros(len(votes), int(self.labels.max()) + 1, dtype=torch.float64)
        return counts.scatter_add_(1, votes, weights.expand(votes.shape)).argmax(1)


def precision_recall(
    features: Tensor, references: Tensor, *, neighbours: int = 3, device: Device = "cpu"
) -> tuple[float, float]:
    """Precision and recall of features [N, C] against ``references`` [M, C] (Kynkäänniemi et al., arXiv 1904.06991).

    Precision is the share of rows that lie within the reach of a reference, which is the Euclidean distance to its
    ``neighbours``-th nearest other reference; recall is the share of references within the reach of a row.
    """
    reach, reference_reach = (_squared_reach(each, neighbours, device) for each in (features, references))
    precise = torch.zeros(len(features), dtype=torch.bool)
    recalled = torch.zeros(len(references), dtype=torch.bool)
    for rows, block in _blocks(features, device):
        for columns, others in _blocks(references, device):
            distances = _squared_distances(block, others)
            precise[rows] |= (distances <= reference_reach[columns].to(device)).any(1).cpu()
            recalled[columns] |= (distances <= reach[rows, None].to(device)).any(0).cpu()
    return float(precise.double().mean()), float(recalled.double().mean())


def _squared_reach(features: Tensor, neighbours: int, device: Device) -> Tensor:
    # A row is its own nearest neighbour.
    return _nearest(features, features, neighbours + 1, _squared_distances, device)[1][:, -1]


def _nearest(
    features: Tensor, others: Tensor, count: int, distance: Distance, device: Device, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest of ``others`` [N, C], or of their ``rows``, of each of [B, C]: indices and distances [B, k]."""
    found = []
    for _, block in _blocks(features, device):
        distances = torch.empty(len(block), 0, device=device)
        indices = torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for part, candidates in _blocks(others, device, rows):
            near = distance(block, candidates).topk(min(count, len(candidates)), largest=False)
            distances = torch.cat([distances, near.values], dim=1)
            indices = torch.cat([indices, near.indices + part.start], dim=1)
            best = distances.topk(min(count, distances.shape[1]), largest=False)
            distances, indices = best.values, indices.gather(1, best.indices)
        found.append((indices.cpu(), distances.cpu()))
    return torch.cat([indices for indices, _ in found]), torch.cat([distances for _, distances in found])


def _blocks(features: Tensor, device: Device, rows: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Parts of features [N, C], or of their ``rows``, as float32 on the device, and where they are."""
    count = len(features) if rows is None else len(rows)
    for start in range(0, max(count, 1), BLOCK):
        part = slice(start, min(start + BLOCK, count))
        block = features[part] if rows is None else features[rows[part]]
        yield part, block.to(device, torch.float32)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2)


def _cosine_distances(x: Tensor, y: Tensor) -> Tensor:
    return 1 - F.normalize(x) @ F.normalize(y).T
