"""Format of token ids as packed bits and as text.

::

    ids [B, K]  <->  K x ceil(log2 V) bits, big-endian, zero-padded to whole bytes  <->  text, URL-safe base64 unpadded

32 ids of a 4,096-entry codebook are 48 bytes or exactly 64 characters. Both forms are unique, and anything else is
rejected: codes are equal if and only if their tokens are.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.arrays import Ids

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


class CodeError(ValueError):
    """Bytes, text or ids that are not valid for this tokenizer; ``position`` is the index of the wrong id, if any."""

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class CodeFormat:
    """The code of an image: ``num_tokens`` ids (K) in 0..``codebook_size``-1 (V)."""

    num_tokens: int
    codebook_size: int

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.codebook_size < 2:
            raise ValueError(
                f"a code needs at least one token and two codes, not {self.num_tokens} and {self.codebook_size}"
            )

    @cached_property
    def bits(self) -> int:
        """Bits per id: ceil(log2 V)."""
        return (self.codebook_size - 1).bit_length()

    @cached_property
    def num_bytes(self) -> int:
        """Length of the packed form in bytes."""
        return (self.num_tokens * self.bits + 7) // 8

    @property
    def num_characters(self) -> int:
        """Length of the text form in characters."""
        return (self.num_bytes * 8 + 5) // 6

    @cached_property
    def _bit_values(self) -> Ids:
        """The value of each bit of an id, the highest first: int64 [bits]."""
        return 1 << np.arange(self.bits - 1, -1, -1, dtype=np.int64)

    def check(self, ids: ArrayLike) -> Ids:
        """Ids [..., K] as int64. Raises ``CodeError`` for a wrong count, a non-integer, or an id out of range."""
        array = np.asarray(ids)
        if array.dtype.kind not in "iu":
            raise CodeError(f"token ids are integers, not {array.dtype}")
        if array.ndim == 0 or array.shape[-1] != self.num_tokens:
            count = array.shape[-1] if array.ndim else 0
            raise CodeError(f"an image has {self.num_tokens} token ids, not {count}")
        outside = np.argwhere((array < 0) | (array >= self.codebook_size))
        if len(outside):
            value, position = array[tuple(outside[0])], int(outside[0][-1])
            limit = self.codebook_size - 1
            raise CodeError(f"token id {value} at position {position} is out of range 0..{limit}", position=position)
        return array.astype(np.int64)

    def pack(self, ids: ArrayLike) -> NDArray[np.uint8]:
        """Ids [B, K] -> bytes uint8 [B, num_bytes]."""
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
        """Ids [B, K] -> B texts of ``num_characters`` characters."""
        return [self.text_of(row.tobytes()) for row in self.pack(ids)]

    def ids_of(self, packed: bytes) -> list[int] | None:
        """The K ids of one packed code, faster than :meth:`unpack`; None for bytes that are not a code."""
        number, mask = int.from_bytes(packed, "big"), (1 << self.bits) - 1
        padding = self.num_bytes * 8 - self.num_tokens * self.bits
        first = padding + (self.num_tokens - 1) * self.bits
        ids = [(number >> shift) & mask for shift in range(first, padding - 1, -self.bits)]
        is_padded = len(packed) == self.num_bytes and not number & ((1 << padding) - 1)
        return ids if is_padded and max(ids) < self.codebook_size else None

    @staticmethod
    def text_of(packed: bytes) -> str:
        """The text form of one packed code."""
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def from_text(self, texts: Sequence[str]) -> Ids:
        """B texts -> ids int64 [B, K]. Raises ``CodeError`` for a text that ``to_text`` does not write."""
        packed = np.empty((len(texts), self.num_bytes), np.uint8)
        for row, text in zip(packed, texts, strict=True):
            row[:] = np.frombuffer(self._decode(text), np.uint8)
        return self.unpack(packed)

    def _decode(self, text: str) -> bytes:
        if len(text) != self.num_characters:
            raise CodeError(f"a code has {self.num_characters} characters, not {len(text)}")
        if not _ALPHABET.fullmatch(text):
            raise CodeError("a code consists of the letters A-Z and a-z, the digits 0-9, '-' and '_'")
        try:
            decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except binascii.Error as error:
            raise CodeError(f"not URL-safe base64: {error}") from None
        # The decoder ignores the unused bits of the last character.
        if base64.urlsafe_b64encode(decoded).decode().rstrip("=") != text:
            raise CodeError("the unused bits of a code's last character must be zero")
        return decoded

    def from_bytes(self, data: bytes) -> Ids:
        """Concatenated packed codes -> ids int64 [B, K]. Raises ``CodeError``."""
        if not data or len(data) % self.num_bytes:
            raise CodeError(f"packed codes come in whole groups of {self.num_bytes} bytes, not {len(data)} bytes")
        return self.unpack(np.frombuffer(data, np.uint8).reshape(-1, self.num_bytes))
