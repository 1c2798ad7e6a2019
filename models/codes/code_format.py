"""Format of token ids as packed bits and as text.

::

    ids [B, L] ─> L x ceil(log2 V) bits, big-endian ─┬─ zero-padded to whole bytes ──────────────> bytes
                                                     └─ zero-padded to sixes, URL-safe base64 ───> text

32 ids of a 4,096-entry codebook are 48 bytes or exactly 64 characters. Both forms are unique, and anything else is
rejected: codes are equal if and only if their tokens are.

A prefix-decodable tokenizer also reads the first L of the K ids of an image. Where L times the bits of an id is a multiple
of 6, the text of the first L ids is the beginning of the text of all: with 12 bits it is cut after any even number of
characters, two a token; with 13 bits after every 6 tokens (13 characters), with 10 bits after every 3 (5 characters). Where
it is not, the unused bits of the last character have to be set to zero.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.arrays import Ids

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")

PAD = -1
"""Fills the rows of a batch after a code's last id, where codes of different lengths are in one array."""


class CodeError(ValueError):
    """Bytes, text or ids that are not valid for this tokenizer; ``position`` is the index of the wrong id, if any."""

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class CodeFormat:
    """The code of an image: ``num_tokens`` ids (K) in 0..``codebook_size``-1 (V), of a prefix-decodable tokenizer the first
    ``min_tokens`` to K (0: always K). Raises ``ValueError`` for numbers that make no code.
    """

    num_tokens: int
    codebook_size: int
    min_tokens: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.codebook_size < 2:
            raise ValueError(
                f"a code needs at least one token and two codes, not {self.num_tokens} and {self.codebook_size}"
            )
        object.__setattr__(self, "min_tokens", self.min_tokens or self.num_tokens)
        if not 1 <= self.min_tokens <= self.num_tokens:
            raise ValueError(f"the shortest code has 1 to {self.num_tokens} tokens, not {self.min_tokens}")
        if self.is_prefix_decodable and self.bits < 6:
            raise ValueError(
                f"{self.bits} bits per token are too few for codes of several lengths: 6 make their text unique"
            )

    @property
    def is_prefix_decodable(self) -> bool:
        """Whether the first ids of a code are a code, too."""
        return self.min_tokens < self.num_tokens

    def of_length(self, length: int) -> "CodeFormat":
        """The format of codes of exactly ``length`` ids. Raises ``CodeError`` if the tokenizer has no such codes."""
        if not self.min_tokens <= length <= self.num_tokens:
            short = "" if length > self.num_tokens else self._why_none_is_shorter
            raise CodeError(f"an image has {self.described_lengths} token ids, not {length}{short}")
        return self if length == self.min_tokens == self.num_tokens else CodeFormat(length, self.codebook_size)

    @property
    def _why_none_is_shorter(self) -> str:
        return "" if self.is_prefix_decodable else "; the tokenizer is not prefix-decodable, so its codes cannot be cut"

    @property
    def described_lengths(self) -> str:
        """For messages: ``32``, or ``1 to 32``."""
        return f"{self.min_tokens} to {self.num_tokens}" if self.is_prefix_decodable else str(self.num_tokens)

    @cached_property
    def bits(self) -> int:
        """Bits per id: ceil(log2 V)."""
        return (self.codebook_size - 1).bit_length()

    @cached_property
    def num_bytes(self) -> int:
        """Length of the packed form in bytes."""
        return (self.num_tokens * self.bits + 7) // 8

    @cached_property
    def num_characters(self) -> int:
        """Length of the text form in characters."""
        return self._characters(self.num_tokens)

    def _characters(self, length: int) -> int:
        """Length of the text form of ``length`` ids."""
        return (length * self.bits + 5) // 6

    @cached_property
    def _bit_values(self) -> Ids:
        """The value of each bit of an id, the highest first: int64 [bits]."""
        return 1 << np.arange(self.bits - 1, -1, -1, dtype=np.int64)

    def check(self, ids: ArrayLike) -> Ids:
        """Ids [..., L] as int64. Raises ``CodeError`` for a wrong count, a non-integer, or an id out of range."""
        array = np.asarray(ids)
        if array.dtype.kind not in "iu":
            raise CodeError(f"token ids are integers, not {array.dtype}")
        self.of_length(array.shape[-1] if array.ndim else 0)
        outside = np.argwhere((array < 0) | (array >= self.codebook_size))
        if len(outside):
            value, position = array[tuple(outside[0])], int(outside[0][-1])
            limit = self.codebook_size - 1
            raise CodeError(f"token id {value} at position {position} is out of range 0..{limit}", position=position)
        return array.astype(np.int64)

    def pad(self, rows: Sequence[Ids]) -> Ids:
        """Codes int64 [L] of any lengths -> ids int64 [B, K], ``PAD`` after the last id of each."""
        padded = np.full((len(rows), self.num_tokens), PAD, np.int64)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return padded

    def check_padded(self, ids: ArrayLike) -> Ids:
        """Codes [B, L], of which some may end in ``PAD`` -> ids int64 [B, K] with ``PAD``. Raises ``CodeError``."""
        array = np.asarray(ids)
        lengths = lengths_of(array)
        if not self.is_prefix_decodable or (lengths == self.num_tokens).all():
            return self.check(array)
        return self.pad([self.check(row[:length]) for row, length in zip(array, lengths, strict=True)])

    def pack(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """Ids [B, L] -> bytes uint8 [B, num_bytes], of shorter codes fewer."""
        array = self.check(ids)
        bits = (array[..., None] & self._bit_values) != 0  # [B, K, bits], the highest first
        return np.packbits(bits.reshape(*array.shape[:-1], -1), axis=-1)

    def unpack(self, packed: NDArray[np.uint8]) -> Ids:
        """Bytes uint8 [B, num_bytes] -> ids int64 [B, K]. Raises ``CodeError`` for padding bits or ids out of range."""
        if packed.shape[-1] != self.num_bytes:
            raise CodeError(f"a packed code has {self.num_bytes} bytes, not {packed.shape[-1]}")
        bits = np.unpackbits(packed, axis=-1)
        used = self.num_tokens * self.bits
        if used < bits.shape[-1] and bits[..., used:].any():
            raise CodeError(f"the last {self.num_bytes * 8 - used} padding bits of a packed code must be zero")
        return self.check(bits[..., :used].reshape(*packed.shape[:-1], self.num_tokens, self.bits) @ self._bit_values)

    def to_text(self, ids: ArrayLike) -> list[str]:
        """Ids [B, L] -> B texts of ``num_characters`` characters, of shorter codes fewer."""
        array = np.asarray(ids)
        code_format = self.of_length(array.shape[-1] if array.ndim else 0)
        return [code_format.text_of(row.tobytes()) for row in code_format.pack(array)]

    def ids_of(self, packed: bytes) -> list[int] | None:
        """The K ids of one packed code, faster than :meth:`unpack`; None for bytes that are not a code."""
        number, mask = int.from_bytes(packed, "big"), (1 << self.bits) - 1
        padding = self.num_bytes * 8 - self.num_tokens * self.bits
        first = padding + (self.num_tokens - 1) * self.bits
        ids = [(number >> shift) & mask for shift in range(first, padding - 1, -self.bits)]
        is_padded = len(packed) == self.num_bytes and not number & ((1 << padding) - 1)
        return ids if is_padded and max(ids) < self.codebook_size else None

    def text_of(self, packed: bytes) -> str:
        """The text form of one packed code of K ids."""
        return base64.urlsafe_b64encode(packed).decode()[: self.num_characters]

    def from_text(self, texts: Sequence[str]) -> Ids:
        """B texts -> ids int64 [B, K] with ``PAD``. Raises ``CodeError`` for a text that ``to_text`` does not write."""
        return self.pad([self._from_text(text) for text in texts])

    def _from_text(self, text: str) -> Ids:
        length = self._length_of(text)
        # "A" stands for six zero bits. Whole groups of four characters never fail to decode.
        decoded = base64.urlsafe_b64decode(text + "A" * (-len(text) % 4))
        used = length * self.bits
        if int.from_bytes(decoded, "big") & ((1 << (len(decoded) * 8 - used)) - 1):
            raise CodeError("the unused bits of a code's last character must be zero")
        code_format = self.of_length(length)
        ids: Ids = code_format.from_bytes(decoded[: code_format.num_bytes])[0]
        return ids

    def _length_of(self, text: str) -> int:
        """The number of ids of a text, from its characters."""
        if not self.is_prefix_decodable:
            if len(text) != self.num_characters:
                short = "" if len(text) > self.num_characters else self._why_none_is_shorter
                raise CodeError(f"a code has {self.num_characters} characters, not {len(text)}{short}")
            length = self.num_tokens
        else:
            length = len(text) * 6 // self.bits
            if len(text) > self.num_characters or length < self.min_tokens:
                least = self._characters(self.min_tokens)
                raise CodeError(f"a code has {least} to {self.num_characters} characters, not {len(text)}")
            if self._characters(length) != len(text):
                raise CodeError(
                    f"a code of {len(text)} characters ends inside a token: the first {length} have "
                    f"{self._characters(length)} characters, the first {length + 1} have {self._characters(length + 1)}"
                )
        if not _ALPHABET.fullmatch(text):
            raise CodeError("a code consists of the letters A-Z and a-z, the digits 0-9, '-' and '_'")
        return length

    def from_bytes(self, data: bytes) -> Ids:
        """Concatenated packed codes -> ids int64 [B, K]. Raises ``CodeError``."""
        if not data or len(data) % self.num_bytes:
            raise CodeError(f"packed codes come in whole groups of {self.num_bytes} bytes, not {len(data)} bytes")
        return self.unpack(np.frombuffer(data, np.uint8).reshape(-1, self.num_bytes))


def lengths_of(tokens: Ids) -> Ids:
    """The number of ids in each row of codes [..., L], of which some may end in ``PAD``: int64 [...]."""
    return np.asarray(np.count_nonzero(tokens != PAD, axis=-1))
