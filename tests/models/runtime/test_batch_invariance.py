"""The measurement of ids in company: what it would say of a tokenizer whose ids depend on it, and of one whose do not."""

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


def test_ids_in_company_are_compared_with_those_alone() -> None:
    images = distinct_images(IMAGES, SIZE, seed=0)
    rows = compare(tiny_tokenizer(), "float32", images, [2, 3])
    assert [(row.batch, row.images, row.different_ids) for row in rows] == [(2, IMAGES, 0), (3, IMAGES, 0)]
    # Cores with one image of a batch each decide nothing alone.
    assert all(row.decided_alone <= IMAGES // 2 for row in rows)


def test_a_tokenizer_that_looks_at_an_image_s_company_is_found_out() -> None:
    images = distinct_images(IMAGES, SIZE, seed=0)
    tokenizer = tiny_tokenizer()
    encode = tokenizer.encoder._function

    def spoiled(inputs: torch.Tensor, exactly: int) -> tuple[torch.Tensor, ...]:
        ids, margins = encode(inputs, exactly)
        return ids + (len(inputs) > 1), margins

    tokenizer.encoder._function = spoiled
    [row] = compare(tokenizer, "float32", images, [6])
    assert row.different_images == 6  # the seventh was alone in its batch
    assert row.share == pytest.approx(6 / 7)
