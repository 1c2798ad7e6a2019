"""Real files, damaged: Hypothesis chooses what is done to which of them, and makes it less where a failure stays one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from service.imaging.formats import sniff
from tests.fuzz.structure import numbers_of, parts_of, with_valid_checksums

__all__ = ["mutated", "mutated_bytes"]

_INTERESTING = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    17,
    255,
    256,
    4096,
    32767,
    32768,
    65535,
    65536,
    2**24 - 1,
    2**31 - 1,
    2**32 - 1,
]
_HOW_MANY = st.sampled_from([1, 1, 1, 2, 2, 3, 4])
_SIGNATURES = {"JPEG": 3, "PNG": 8, "WEBP": 12, "AVIF": 12, "GIF": 6, "BMP": 2, "TIFF": 4}


def mutated(files: Mapping[str, bytes]) -> SearchStrategy[bytes]:
    """One of ``files`` after a few changes, mostly with its signature and often with its checksums made right again."""
    names = sorted(files)

    @st.composite
    def build(draw: DrawFn) -> bytes:
        original = data = files[draw(st.sampled_from(names))]
        for _ in range(draw(_HOW_MANY)):
            data = draw(st.sampled_from(_CHANGES))(draw, data, files)
        if draw(st.integers(0, 7)):  # without its signature nothing else of a file is looked at
            length = _SIGNATURES[sniff(original) or ""]
            data = original[:length] + data[length:]
        return with_valid_checksums(data) if draw(st.booleans()) else data

    return build()


def mutated_bytes(files: Mapping[str, bytes]) -> SearchStrategy[bytes]:
    """The same for files of no known structure."""
    names = sorted(files)

    @st.composite
    def build(draw: DrawFn) -> bytes:
        data = files[draw(st.sampled_from(names))]
        for _ in range(draw(_HOW_MANY)):
            data = draw(st.sampled_from(_PLAIN_CHANGES))(draw, data, files)
        return data

    return build()


Change = Callable[[DrawFn, bytes, Mapping[str, bytes]], bytes]


def _place(draw: DrawFn, data: bytes) -> int:
    """A position; as often among the first 128 bytes, which decide most."""
    last = max(len(data) - 1, 0)
    return draw(st.integers(0, min(last, 127)) | st.integers(0, last))


def _flip_bit(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    if not data:
        return data
    place, bit = _place(draw, data), draw(st.integers(0, 7))
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _overwrite(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    place, new = _place(draw, data), draw(st.binary(min_size=1, max_size=8))
    return data[:place] + new + data[place + len(new) :]


def _insert(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    place = _place(draw, data)
    return data[:place] + draw(st.binary(min_size=1, max_size=16)) + data[place:]


def _delete(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    place = _place(draw, data)
    return data[:place] + data[place + draw(st.integers(1, 32)) :]


def _truncate(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    return data[: _place(draw, data)]


def _repeat(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    place, length, times = _place(draw, data), draw(st.integers(1, 64)), draw(st.integers(1, 64))
    return data[:place] + data[place : place + length] * times + data[place:]


def _splice(draw: DrawFn, data: bytes, files: Mapping[str, bytes]) -> bytes:
    """The beginning of this file and the end of another."""
    other = files[draw(st.sampled_from(sorted(files)))]
    return data[: _place(draw, data)] + other[_place(draw, other) :]


def _set_number(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """A length, a dimension, a depth or an offset becomes another one."""
    numbers = numbers_of(data)
    if not numbers:
        return data
    number = draw(st.sampled_from(numbers))
    end, most = number.start + number.size, (1 << 8 * number.size) - 1
    old = int.from_bytes(data[number.start : end], number.order)
    new = draw(
        st.sampled_from(_INTERESTING) | st.integers(0, most) | st.integers(-4, 4).map(lambda change: old + change)
    )
    return data[: number.start] + (new & most).to_bytes(number.size, number.order) + data[end:]


def _rearrange(draw: DrawFn, data: bytes, _: Mapping[str, bytes]) -> bytes:
    """A chunk is left out, comes twice, or comes elsewhere."""
    parts = parts_of(data)
    if not parts:
        return data
    part, way = draw(st.sampled_from(parts)), draw(st.sampled_from(["drop", "twice", "move"]))
    held = data[part.start : part.end]
    if way == "twice":
        return data[: part.end] + held + data[part.end :]
    rest = data[: part.start] + data[part.end :]
    if way == "drop":
        return rest
    place = min(draw(st.sampled_from(parts)).start, len(rest))
    return rest[:place] + held + rest[place:]


def _graft(draw: DrawFn, data: bytes, files: Mapping[str, bytes]) -> bytes:
    """A chunk of another file."""
    other = files[draw(st.sampled_from(sorted(files)))]
    mine, theirs = parts_of(data), parts_of(other)
    if not mine or not theirs:
        return data
    part, place = draw(st.sampled_from(theirs)), draw(st.sampled_from(mine)).start
    return data[:place] + other[part.start : part.end] + data[place:]


_PLAIN_CHANGES: tuple[Change, ...] = (_flip_bit, _overwrite, _insert, _delete, _truncate, _repeat, _splice)
# Changes that know the structure come as often as all the others, since they reach further into a decoder.
_CHANGES: tuple[Change, ...] = (*_PLAIN_CHANGES, _set_number, _set_number, _set_number, _rearrange, _rearrange, _graft)
