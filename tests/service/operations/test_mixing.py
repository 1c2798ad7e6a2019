"""Mixed tokens, on a codebook that one can see through: the corners and the middle of a square."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.operations.mixing import mix_tokens

CODES = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]], np.float32)


def mixed(*rows: list[int], **options: object) -> list[int]:
    return mix_tokens(np.array(rows, np.int64), CODES, **options).tolist()  # type: ignore[arg-type]


def test_the_code_nearest_to_the_mean_is_taken() -> None:
    assert mixed([0, 1, 0], [3, 2, 1], weights=[1, 1])[:2] == [4, 4]
    assert mixed([0], [3], weights=[0.9, 0.1]) == [0]
    assert mixed([0], [3], weights=[0.2, 0.8]) == [3]
    assert mixed([0], [1], [3], weights=[0, 1, 1]) == [1]  # of two that are as near, the first


def test_weights_are_equal_unless_given_and_only_their_ratios_count() -> None:
    assert mixed([0], [3]) == [4]
    for scale in (1e-300, 1.0, 1e300):
        assert mixed([0], [3], weights=[scale, scale]) == [4]
        assert mixed([0], [3], weights=[scale, 9 * scale]) == [3]


def test_positions_take_the_token_of_an_image_as_it_is() -> None:
    assert mixed([0, 1, 2], [3, 3, 3], positions=[0, 1, 0]) == [0, 3, 2]
    assert mixed([0, 0, 0], [3, 3, 3], positions=[0, None, 1], weights=[1, 1]) == [0, 4, 3]


ids = st.lists(st.integers(0, 4), min_size=3, max_size=3)


@given(st.lists(ids, min_size=1, max_size=4), st.data())
def test_full_weight_on_one_image_returns_it(rows: list[list[int]], data: st.DataObject) -> None:
    one = data.draw(st.integers(0, len(rows) - 1))
    assert mixed(*rows, weights=[float(index == one) for index in range(len(rows))]) == rows[one]


@given(ids, st.lists(st.floats(0, 1e6), min_size=2, max_size=4).filter(any))
def test_images_that_agree_stay_as_they_are(row: list[int], weights: list[float]) -> None:
    assert mixed(*[row] * len(weights), weights=weights) == row


def test_a_duplicate_codebook_entry_keeps_its_id() -> None:
    twins = np.array([[1, 0], [1, 0]], np.float32)
    assert mix_tokens(np.array([[1], [1]]), twins).tolist() == [1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_of_the_codebook_does_not_decide(dtype: type) -> None:
    codes = (1000 + CODES * 1e-1).astype(dtype)
    assert mix_tokens(np.array([[0], [3]]), codes, weights=[0.9, 0.1]).tolist() == [0]
