"""Neighbours are those of a search through everything."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from models.evaluation import neighbours
from models.evaluation.neighbours import ReferenceSet, precision_recall


def features(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_are_those_of_least_cosine_distance() -> None:
    asked, known = features(300, 0), features(500, 1)
    rows, distances = ReferenceSet(known, torch.zeros(500, dtype=torch.int64)).nearest(asked, 4)
    expected = cdist(asked.numpy(), known.numpy(), "cosine")
    nearest = np.argsort(expected, axis=1)[:, :4]
    assert rows.tolist() == nearest.tolist()
    np.testing.assert_allclose(distances, np.take_along_axis(expected, nearest, axis=1), atol=1e-5)


def test_the_class_is_the_majority_of_five_neighbours_with_ties_by_distance() -> None:
    asked, known = features(200, 2), features(400, 3)
    labels = torch.randint(4, (400,), generator=torch.Generator().manual_seed(4))
    votes = labels[torch.from_numpy(np.argsort(cdist(asked.numpy(), known.numpy(), "cosine"), axis=1)[:, :5].copy())]
    ties = 0
    expected = []
    for row in votes.tolist():
        counts = Counter(row)
        leaders = [label for label in counts if counts[label] == max(counts.values())]
        ties += len(leaders) > 1
        expected.append(next(label for label in row if label in leaders))
    assert ties > 20
    assert ReferenceSet(known, labels).classify(asked).tolist() == expected


def test_a_class_that_is_left_out_is_never_found() -> None:
    labels = torch.arange(400) % 4
    found = ReferenceSet(features(400, 1), labels).of_classes(torch.tensor([1, 3])).classify(features(50, 0))
    assert set(found.tolist()) == {1, 3}


def test_fewer_references_than_asked_for_are_all_there_are() -> None:
    assert ReferenceSet(features(3, 0), torch.arange(3)).nearest(features(2, 1), 5)[0].shape == (2, 3)


@pytest.mark.parametrize(("rows", "others"), [(700, 450), (3, 200)], ids=["many", "fewer than neighbours"])
def test_precision_and_recall_are_those_of_the_definition_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, rows: int, others: int
) -> None:
    x, y = features(rows, 0), 0.8 * features(others, 1) + 0.3
    reach, other_reach = (np.sort(cdist(each.numpy(), each.numpy()), axis=1)[:, :4][:, -1] for each in (x, y))
    between = cdist(x.numpy(), y.numpy())
    expected = ((between <= other_reach).any(1).mean(), (between <= reach[:, None]).any(0).mean())
    assert precision_recall(x, y) == pytest.approx(expected)
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    assert precision_recall(x.half(), y.half()) == pytest.approx(expected, abs=0.01)
    assert precision_recall(x, y) == pytest.approx(expected)


def test_blocks_of_any_size_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    references = ReferenceSet(features(500, 1), torch.arange(500) % 7)
    whole = references.of_classes(torch.arange(5)).nearest(features(300, 0), 4)
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    parts = references.of_classes(torch.arange(5)).nearest(features(300, 0), 4)
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
