"""Where shards start, across the parts of a source."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.bulk.entries import Position
from service.bulk.shards import shard_starts


@given(counts=st.lists(st.integers(0, 12), max_size=8), shard_images=st.integers(1, 9), data=st.data())
def test_shard_starts_are_those_of_sequential_reading(
    counts: list[int], shard_images: int, data: st.DataObject
) -> None:
    entries = [Position(part, offset) for part, count in enumerate(counts) for offset in range(count)]
    starts = entries[::shard_images]
    assert list(shard_starts(counts, Position(0, 0), shard_images)) == starts
    # A run that goes on begins behind the last entry of a shard: where the next one is, or at the end of that part.
    whole = data.draw(st.integers(0, len(starts)))
    last = entries[: whole * shard_images][-1:]
    begin = Position(last[0].part, last[0].offset + 1) if last else Position(0, 0)
    assert list(shard_starts(counts[begin.part :], begin, shard_images)) == starts[whole:]
