"""File format of packed codes: a header with tokenizer and revision, then the packed codes.

::

    offset  size  field (numbers are unsigned and big-endian)
    0       8     89 54 54 4B 0D 0A 1A 0A: not text, and damaged by line-end conversion (like PNG's signature)
    8       1     version of this layout, 1
    9       1     bits per id
    10      2     K, ids per image: fewer than the tokenizer's in a file of shorter codes, which all have the same length
    12      4     V, codes in the codebook
    16      4     B, images
    20      1+n   length of the tokenizer's name, and the name in UTF-8
    ..      1+n   length of its revision, and the revision in UTF-8
    ..      B * ceil(K * bits / 8)   the packed codes (``models/codes/code_format.py``)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from models.arrays import Ids
from models.codes.code_format import CodeError, CodeFormat

MEDIA_TYPE = "application/vnd.titok.codes"
SIGNATURE = b"\x89TTK\r\n\x1a\n"
_VERSION = 1
_HEAD = struct.Struct(">8sBBHII")


@dataclass(frozen=True)
class PackedCodes:
    """``tokens`` int64 [B, K] of one ``revision`` of one ``tokenizer``."""

    tokenizer: str
    revision: str
    code_format: CodeFormat
    tokens: Ids

    def to_bytes(self) -> bytes:
        """The file. Raises ``CodeError`` for ids that do not fit the format, ``ValueError`` for names over 255 bytes."""
        names = b"".join(_prefixed(name) for name in (self.tokenizer, self.revision))
        form = self.code_format
        head = _HEAD.pack(SIGNATURE, _VERSION, form.bits, form.num_tokens, form.codebook_size, len(self.tokens))
        return head + names + form.pack(self.tokens).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedCodes:
        """Reads a file. Raises ``CodeError`` for anything that ``to_bytes`` does not write."""
        if not data.startswith(SIGNATURE):
            raise CodeError("this is not a file of packed codes: the signature is missing")
        if len(data) < _HEAD.size:
            raise CodeError(f"the header of packed codes has at least {_HEAD.size} bytes, not {len(data)}")
        _, version, bits, num_tokens, codebook_size, count = _HEAD.unpack_from(data)
        if version != _VERSION:
            raise CodeError(f"packed codes of layout version {version} are unknown; version {_VERSION} is expected")
        try:
            code_format = CodeFormat(num_tokens, codebook_size)
        except ValueError as error:
            raise CodeError(str(error)) from None
        if bits != code_format.bits:
            raise CodeError(f"an id of {codebook_size} codes has {code_format.bits} bits, not {bits}")
        tokenizer, offset = _name_at(data, _HEAD.size, "tokenizer")
        revision, offset = _name_at(data, offset, "revision")
        expected = count * code_format.num_bytes
        if not count or len(data) - offset != expected:
            raise CodeError(
                f"the header declares {count} images of {num_tokens} tokens each, {expected} bytes; "
                f"{len(data) - offset} bytes follow it"
            )
        return cls(tokenizer, revision, code_format, code_format.from_bytes(data[offset:]))


def _prefixed(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) > 255:
        raise ValueError(f"{name[:40]!r}... is {len(encoded)} bytes long; a name has at most 255")
    return bytes([len(encoded)]) + encoded


def _name_at(data: bytes, offset: int, what: str) -> tuple[str, int]:
    length = data[offset] if offset < len(data) else 0
    end = offset + 1 + length
    if end > len(data):
        raise CodeError(f"the header of packed codes ends within the {what}")
    try:
        return data[offset + 1 : end].decode(), end
    except UnicodeDecodeError:
        raise CodeError(f"the {what} in the header of packed codes is not UTF-8") from None
