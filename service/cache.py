"""Codes of images already seen, so that the same bytes need no decoding, no queue and no device.

The key is what decides the ids: the bytes and the tokenizer's revision (weights, preprocessing and precision). The value
is the packed code and the original size. A cache can only help: what it returns is checked like anything from outside.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["CachedCode", "CodeCache", "MemoryCache", "NoCache", "cache_key"]


@dataclass(frozen=True, slots=True)
class CachedCode:
    """A packed code and the (width, height) of the image it was made from."""

    code: bytes
    original_size: tuple[int, int]


def cache_key(data: bytes, *, tokenizer: str, revision: str) -> bytes:
    """32 bytes that stand for an upload, as one revision of one tokenizer sees it."""
    digest = hashlib.sha256(f"{tokenizer}\n{revision}\n".encode())
    digest.update(data)
    return digest.digest()


class CodeCache(Protocol):
    """Where codes are kept."""

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """The codes known, in the order of the keys. Never raises."""

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """Keeps codes, best effort. Never raises."""


class NoCache:
    """Knows nothing."""

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``."""
        return [None] * len(keys)

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``."""


class MemoryCache:
    """The most recently used ``capacity`` codes, in this process. Used from one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[bytes, CachedCode] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``."""
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)
        return [self._entries.get(key) for key in keys]

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``."""
        for key, code in entries:
            self._entries[key] = code
            self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
