"""Nearest neighbours among reference images by Lite0 features, and k-nearest-neighbour classification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 256
CLASSIFIER_NEIGHBOURS = 5


class ReferenceSet:
    """Reference images: features [N, C] and ``labels`` int64 [N]; distances are cosine distances."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels
        self._directions = F.normalize(features, dim=1)

    def __len__(self) -> int:
        return len(self.labels)

    def of_classes(self, labels: Tensor) -> ReferenceSet:
        """The references of the given classes."""
        wanted = torch.isin(self.labels, labels)
        return ReferenceSet(self.features[wanted], self.labels[wanted])

    def nearest(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` nearest references of each row of [B, C], all if there are fewer: rows int64 [B, k], the nearest
        first, and distances float32 [B, k], 1 - cosine.
        """
        count = min(count, len(self))
        found = [
            (F.normalize(part, dim=1) @ self._directions.T).topk(count, dim=1) for part in torch.split(features, _CHUNK)
        ]
        return torch.cat([part.indices for part in found]), 1 - torch.cat([part.values for part in found])

    def classify(self, features: Tensor, *, neighbours: int = CLASSIFIER_NEIGHBOURS) -> Tensor:
        """The majority label int64 [B] of the nearest ``neighbours`` of [B, C]; ties go to the nearest one."""
        rows, _ = self.nearest(features, neighbours)
        votes = self.labels[rows]  # [B, k]
        # Weights break ties in favour of the nearest; together they add less than one vote.
        weights = 1 + 0.4 * 0.5 ** torch.arange(rows.shape[1], dtype=torch.float64)
        counts = torch.zeros(len(votes), int(self.labels.max()) + 1, dtype=torch.float64)
        return counts.scatter_add_(1, votes, weights.expand(votes.shape)).argmax(1)
