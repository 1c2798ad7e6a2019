"""The binary format of values in Redis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.cache import CachedCode
from service.cache.values import pack_value, unpack_value

sides = st.integers(1, 2**32 - 1)
entries = st.builds(CachedCode, st.binary(min_size=1, max_size=300), st.tuples(sides, sides))
keys = st.binary(max_size=200)


@given(keys, entries)
def test_values_round_trip(key: bytes, entry: CachedCode) -> None:
    assert unpack_value(key, pack_value(key, entry)) == entry


@given(keys, keys, entries)
def test_a_value_of_another_key_is_rejected(key: bytes, other: bytes, entry: CachedCode) -> None:
    assert (unpack_value(other, pack_value(key, entry)) is None) == (key != other)


@given(keys, entries, st.data())
def test_a_truncated_value_is_rejected(key: bytes, entry: CachedCode, data: st.DataObject) -> None:
    value = pack_value(key, entry)
    assert unpack_value(key, value[: data.draw(st.integers(0, len(value) - 1))]) is None


@given(keys, st.one_of(st.binary(max_size=100), st.none(), st.integers(), st.text()))
def test_arbitrary_data_is_rejected(key: bytes, value: object) -> None:
    assert unpack_value(key, value) is None


def test_a_cached_value_takes_57_bytes() -> None:
    assert len(pack_value(b"key", CachedCode(bytes(48), (600, 400)))) == 57
