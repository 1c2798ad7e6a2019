"""Packed and text form of ids: round trip, uniqueness, and rejection of anything else."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codes.code_format import PAD, CodeError, CodeFormat, lengths_of

MINI = CodeFormat(32, 4096)

formats = st.builds(CodeFormat, st.integers(1, 70), st.integers(2, 70_000))


def test_32_ids_of_4096_codes_are_48_bytes_and_64_characters() -> None:
    assert (MINI.bits, MINI.num_bytes, MINI.num_characters) == (12, 48, 64)


def test_ids_are_packed_big_endian_at_twelve_bits_each() -> None:
    packed = CodeFormat(2, 4096).pack([[0xABC, 0x123]])
    assert packed.tobytes() == bytes.fromhex("abc123")


@given(formats, st.data())
def test_ids_survive_a_round_trip_through_bytes_and_text(code_format: CodeFormat, data: st.DataObject) -> None:
    row = st.lists(
        st.integers(0, code_format.codebook_size - 1), min_size=code_format.num_tokens, max_size=code_format.num_tokens
    )
    ids = np.array(data.draw(st.lists(row, min_size=1, max_size=4)), np.int64)
    assert (code_format.from_bytes(code_format.pack(ids).tobytes()) == ids).all()
    texts = code_format.to_text(ids)
    assert {len(text) for text in texts} == {code_format.num_characters}
    assert (code_format.from_text(texts) == ids).all()


@given(st.binary(min_size=48, max_size=48))
def test_every_48_bytes_are_a_code_of_the_default_tokenizer(packed: bytes) -> None:
    assert MINI.pack(MINI.from_bytes(packed)).tobytes() == packed


@given(formats, st.binary(max_size=120))
def test_bytes_are_rejected_or_written_back_unchanged(code_format: CodeFormat, packed: bytes) -> None:
    try:
        ids = code_format.from_bytes(packed)
    except CodeError:
        return
    assert code_format.pack(ids).tobytes() == packed


@given(st.text(alphabet=st.characters(max_codepoint=0x250), min_size=62, max_size=66))
def test_text_is_rejected_or_written_back_unchanged(text: str) -> None:
    try:
        ids = MINI.from_text([text])
    except CodeError:
        return
    assert MINI.to_text(ids) == [text]


def test_padding_bits_that_are_not_zero_are_rejected() -> None:
    code_format = CodeFormat(1, 2)
    assert code_format.from_bytes(b"\x80").tolist() == [[1]]
    with pytest.raises(CodeError, match="7 padding bits"):
        code_format.from_bytes(b"\x81")


def test_unused_bits_of_the_last_character_are_rejected() -> None:
    code_format = CodeFormat(1, 256)
    text = base64.urlsafe_b64encode(b"\x07").decode().rstrip("=")
    assert code_format.from_text([text]).tolist() == [[7]]
    with pytest.raises(CodeError, match="unused bits"):
        code_format.from_text([text[0] + chr(ord(text[1]) + 1)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A" * 63, "64 characters, not 63"),
        ("A" * 65, "64 characters, not 65"),
        ("+" + "A" * 63, "letters"),
        ("A" * 63 + "\n", "letters"),
        ("é" * 64, "letters"),
    ],
)
def test_text_of_another_length_or_alphabet_is_rejected(text: str, message: str) -> None:
    with pytest.raises(CodeError, match=message):
        MINI.from_text([text])


def test_an_id_out_of_range_is_reported_with_its_position() -> None:
    with pytest.raises(CodeError, match=r"4096 at position 3 is out of range 0\.\.4095") as refused:
        MINI.pack([[0, 1, 2, 4096, *range(28)]])
    assert refused.value.position == 3


@pytest.mark.parametrize("ids", [[[0.5] * 32], [[0] * 31], [], [[True] * 32], [[-1] + [0] * 31]])
def test_ids_of_another_kind_or_count_are_rejected(ids: object) -> None:
    with pytest.raises(CodeError):
        MINI.pack(ids)  # type: ignore[arg-type]


def test_an_id_read_from_bytes_is_checked_against_the_codebook() -> None:
    with pytest.raises(CodeError, match=r"3 at position 0 is out of range 0\.\.2"):
        CodeFormat(1, 3).from_bytes(b"\xc0")


@given(st.lists(st.binary(min_size=48, max_size=48), min_size=2, max_size=2, unique=True))
def test_different_bytes_have_different_text(packed: list[bytes]) -> None:
    first, second = (MINI.to_text(MINI.from_bytes(data))[0] for data in packed)
    assert first != second


@given(
    st.builds(CodeFormat, st.integers(min_value=1, max_value=40), st.sampled_from([2, 3, 16, 1000, 4096])),
    st.data(),
)
def test_a_single_code_is_read_and_rejected_like_many(code_format: CodeFormat, data: st.DataObject) -> None:
    length = st.sampled_from([code_format.num_bytes, code_format.num_bytes + 1])
    packed = data.draw(length.flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    try:
        expected = code_format.from_bytes(packed)
    except CodeError:
        expected = np.empty((0, 0), np.int64)
    if len(expected) != 1:
        assert code_format.ids_of(packed) is None
    else:
        assert code_format.ids_of(packed) == expected[0].tolist()
        assert [code_format.text_of(packed)] == code_format.to_text(expected)


prefix_formats = st.builds(
    lambda count, codes, least: CodeFormat(count, codes, min(least, count)),
    st.integers(1, 40),
    st.integers(33, 70_000),
    st.integers(1, 40),
)


@given(prefix_formats, st.data())
def test_the_first_ids_of_a_code_are_a_code_with_a_text_of_its_own(
    code_format: CodeFormat, data: st.DataObject
) -> None:
    ids = np.array([data.draw(st.lists(st.integers(0, code_format.codebook_size - 1), min_size=40, max_size=40))])
    ids = ids[:, : code_format.num_tokens]
    lengths = range(code_format.min_tokens, code_format.num_tokens + 1)
    texts = [code_format.to_text(ids[:, :length])[0] for length in lengths]
    assert len({len(text) for text in texts}) == len(texts)
    read = code_format.from_text(texts)
    assert lengths_of(read).tolist() == [*lengths]
    for length, text, row in zip(lengths, texts, read, strict=True):
        assert (row[:length] == ids[0, :length]).all()
        assert (row[length:] == PAD).all()
        if length * code_format.bits % 6 == 0:
            assert texts[-1].startswith(text)


def test_every_second_character_of_a_code_of_twelve_bits_is_a_cut() -> None:
    code_format = CodeFormat(32, 4096, 1)
    [text] = code_format.to_text(np.arange(0, 4096, 128)[None])
    assert code_format.from_text([text[:16]])[0, :9].tolist() == [*range(0, 1024, 128), PAD]
    with pytest.raises(
        CodeError, match="17 characters ends inside a token: the first 8 have 16 characters, the first 9 have 18"
    ):
        code_format.from_text([text[:17]])


@pytest.mark.parametrize("length", [0, 1, 66, 80])
def test_a_text_shorter_or_longer_than_any_code_is_rejected(length: int) -> None:
    with pytest.raises(CodeError, match=f"4 to 64 characters, not {length}"):
        CodeFormat(32, 4096, 2).from_text(["A" * length])


def test_a_code_of_several_lengths_needs_six_bits_per_token() -> None:
    with pytest.raises(ValueError, match="5 bits per token are too few"):
        CodeFormat(8, 32, 1)
    with pytest.raises(ValueError, match="1 to 8 tokens, not 9"):
        CodeFormat(8, 64, 9)
