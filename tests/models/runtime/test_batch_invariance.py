"""The batch invariance benchmark, with a batch-invariant tokenizer and with one that is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.runtime.cpu_threads import torch_threads
from tests.benchmarks.batch_invariance import compare
from tests.benchmarks.images import distinct_images
from tests.tiny_models import tiny_tokenizer

IMAGES, SIZE = 7, 32


@pytest.fixture(autouse=True)
def two_cores() -> Iterator[None]:
    with torch_threads(2):
        yield


def test_batched_ids_are_compared_with_unbatched_ones() -> None:
    images = distinct_images(IMAGES, SIZE, seed=0)
    rows = compare(tiny_tokenizer(), "float32", images, [2, 3])
    assert [(row.batch, row.images, row.different_ids) for row in rows] == [(2, IMAGES, 0), (3, IMAGES, 0)]
    # Cores with a single image of a batch repeat nothing.
    assert all(row.re_encoded <= IMAGES // 2 for row in rows)


def test_a_tokenizer_that_is_not_batch_invariant_is_detected() -> None:
    images = distinct_images(IMAGES, SIZE, seed=0)
    tokenizer = tiny_tokenizer()
    encode = tokenizer.encoder._function

    def batch_dependent(inputs: torch.Tensor, exact: int) -> tuple[torch.Tensor, ...]:
        ids, margins = encode(inputs, exact)
        return ids + (len(inputs) > 1), margins

    tokenizer.encoder._function = batch_dependent
    [row] = compare(tokenizer, "float32", images, [6])
    assert row.different_images == 6  # the seventh is in a batch of its own
    assert row.share == pytest.approx(6 / 7)
