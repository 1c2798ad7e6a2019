"""Splitting lists into requests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.client.calls import batches


@given(
    st.lists(st.binary(max_size=9)),
    st.integers(min_value=1, max_value=5),
    st.integers(min_value=1, max_value=20),
)
def test_batches_keep_the_order_and_are_as_large_as_the_limits_allow(
    items: list[bytes], max_items: int, max_bytes: int
) -> None:
    parts = list(batches(items, max_items=max_items, max_bytes=max_bytes, size=len))
    assert [item for part in parts for item in part.items] == items
    assert [part.first for part in parts] == [sum(len(p.items) for p in parts[:i]) for i in range(len(parts))]
    for part, following in pairwise(parts):
        assert 1 <= len(part.items) <= max_items
        assert len(part.items) == 1 or sum(map(len, part.items)) <= max_bytes
        full = len(part.items) == max_items or sum(map(len, part.items)) + len(following.items[0]) > max_bytes
        assert full, "the next item fits into this batch"


def test_items_are_read_lazily() -> None:
    taken = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    parts = batches(source(), max_items=2)
    assert taken == []
    next(parts)
    assert taken == [0, 1, 2]
