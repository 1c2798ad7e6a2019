"""Token ids of a request, from JSON or from packed bits, validated."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.arrays import Ids
from models.codes.code_format import CodeError, CodeFormat
from models.codes.packed import PackedCodes
from service.api.schemas.images import DecodeRequest
from service.api.state import check_image_count
from service.errors import ErrorDetail
from service.http.problems import InvalidRequest, invalid_value


def tokens_from_json(body: DecodeRequest, code_format: CodeFormat, *, max_images: int) -> Ids:
    """Ids int64 [B, K] with ``PAD`` from ``tokens``, ``code`` or ``codes``. Raises ``InvalidRequest``, as all functions here
    do, and ``TooManyImages`` before any is converted.
    """
    given = [name for name in ("tokens", "code", "codes") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            "The body has exactly one of 'tokens', 'code' and 'codes'.",
            errors=[ErrorDetail(pointer="", detail="exactly one member is expected", value=", ".join(given) or None)],
        )
    if given == ["code"]:
        return tokens_from_code(body.code, code_format, pointer="/code")
    many = body.codes if given == ["codes"] else body.tokens
    pointer = f"/{given[0]}"
    if not many:
        raise invalid_value(pointer, "a list with at least one entry is expected", many)
    if given == ["codes"] or isinstance(many[0], list):
        check_image_count(len(many), max_images, pointer)
    if given == ["codes"]:
        rows = [tokens_from_code(text, code_format, pointer=f"{pointer}/{i}") for i, text in enumerate(many)]
        return np.concatenate(rows)
    if isinstance(many[0], list):
        return code_format.pad([_row(row, code_format, f"{pointer}/{i}") for i, row in enumerate(many)])
    return code_format.pad([_row(many, code_format, pointer)])


def tokens_from_code(text: Any, code_format: CodeFormat, *, pointer: str) -> Ids:
    """Ids int64 [1, K] with ``PAD`` of a code."""
    expected = f"the code of {code_format.described_lengths} tokens, at most {code_format.num_characters} characters"
    if not isinstance(text, str):
        raise invalid_value(pointer, "a code is a string", text, expected)
    try:
        return code_format.from_text([text])
    except CodeError as error:
        raise invalid_value(pointer, str(error), text[:80], expected) from None


def tokens_from_bytes(data: bytes, code_format: CodeFormat) -> Ids:
    """Ids int64 [B, K] of concatenated packed codes of K ids each."""
    try:
        return code_format.from_bytes(data)
    except CodeError as error:
        raise invalid_value("body", str(error), None, f"a multiple of {code_format.num_bytes} bytes") from None


def packed_codes_from(data: bytes) -> PackedCodes:
    """A file of packed codes."""
    try:
        return PackedCodes.from_bytes(data)
    except CodeError as error:
        raise invalid_value("body", str(error), None, "a file of packed codes") from None


def check_format(packed: PackedCodes, code_format: CodeFormat) -> None:
    """Refuses a file whose codes are not of this tokenizer or of none of its lengths."""
    given = packed.code_format
    if given.codebook_size != code_format.codebook_size:
        raise invalid_value("body", "V in the header is not that of this tokenizer", given.codebook_size)
    _check_length(given.num_tokens, code_format, "body")


def _row(row: Any, code_format: CodeFormat, pointer: str) -> Ids:
    if not isinstance(row, list):
        raise invalid_value(pointer, "a list of token ids is expected", row)
    _check_length(len(row), code_format, pointer)
    allowed = f"0..{code_format.codebook_size - 1}"
    for position, value in enumerate(row):
        # bool is a subclass of int
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid_value(f"{pointer}/{position}", "a token id is a whole number", value, allowed)
        if not 0 <= value < code_format.codebook_size:
            raise invalid_value(f"{pointer}/{position}", "token id out of range", value, allowed)
    return np.array(row, np.int64)


def _check_length(length: int, code_format: CodeFormat, pointer: str) -> None:
    try:
        code_format.of_length(length)
    except CodeError as error:
        raise invalid_value(pointer, str(error), length, f"{code_format.described_lengths} ids") from None
