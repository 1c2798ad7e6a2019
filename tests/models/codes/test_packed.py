"""Files of packed codes: round trip, layout, and rejection of anything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codes.code_format import CodeError, CodeFormat
from models.codes.packed import SIGNATURE, PackedCodes

names = st.text(st.characters(codec="utf-8"), max_size=60)


@st.composite
def files(draw: st.DrawFn) -> PackedCodes:
    code_format = CodeFormat(draw(st.integers(1, 300)), draw(st.integers(2, 70_000)))
    count = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    shape = (count, code_format.num_tokens)
    tokens = np.random.default_rng(seed).integers(0, code_format.codebook_size, shape)
    return PackedCodes(draw(names), draw(names), code_format, tokens)


def example() -> PackedCodes:
    return PackedCodes("titok-mini-32", "abc-p1", CodeFormat(32, 4096), np.arange(64).reshape(2, 32))


@given(files())
@settings(deadline=None)
def test_a_written_file_is_read_back(written: PackedCodes) -> None:
    read = PackedCodes.from_bytes(written.to_bytes())
    assert (read.tokenizer, read.revision, read.code_format) == (
        written.tokenizer,
        written.revision,
        written.code_format,
    )
    assert (read.tokens == written.tokens).all()


@given(files(), st.data())
@settings(deadline=None)
def test_a_changed_file_is_rejected_or_reads_back_to_the_same_bytes(written: PackedCodes, data: st.DataObject) -> None:
    original = written.to_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    for candidate in (bytes(changed), original[:position], original + b"\0"):
        try:
            read = PackedCodes.from_bytes(candidate)
        except CodeError:
            continue
        assert read.to_bytes() == candidate


def test_the_layout_is_the_documented_one() -> None:
    data = example().to_bytes()
    assert data[:8] == SIGNATURE == b"\x89TTK\r\n\x1a\n"
    assert data[8:20] == bytes([1, 12]) + (32).to_bytes(2) + (4096).to_bytes(4) + (2).to_bytes(4)
    assert data[20:] == b"\x0dtitok-mini-32\x06abc-p1" + CodeFormat(32, 4096).pack(example().tokens).tobytes()


@pytest.mark.parametrize(
    ("position", "value", "why"),
    [
        (0, 0, "signature"),
        (8, 2, "version 2"),
        (9, 11, "12 bits, not 11"),
        (11, 0, "at least one token"),
        (19, 3, "declares 3 images"),
        (20, 255, "ends within the tokenizer"),
        (21, 0xFF, "not UTF-8"),
    ],
)
def test_errors_say_what_is_wrong(position: int, value: int, why: str) -> None:
    data = bytearray(example().to_bytes())
    data[position] = value
    with pytest.raises(CodeError, match=why):
        PackedCodes.from_bytes(bytes(data))


def test_a_name_that_is_too_long_is_rejected() -> None:
    with pytest.raises(ValueError, match="at most 255"):
        PackedCodes("é" * 128, "", CodeFormat(32, 4096), example().tokens).to_bytes()
