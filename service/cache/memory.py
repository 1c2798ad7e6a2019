"""Codes in the memory of this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from service.cache.protocol import CachedCode, Claim

__all__ = ["MemoryCache"]


class MemoryCache:
    """The most recently used ``capacity`` codes. Used from one event loop."""

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

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """See ``CodeCache``. There is no other process."""
        return [Claim(is_own=True)] * len(keys)

    async def release_many(self, keys: Sequence[bytes]) -> None:
        """See ``CodeCache``."""

    async def close(self) -> None:
        """See ``CodeCache``."""
