"""A cache of codes in the memory of this process."""

from __future__ import annotations

from collections.abc import Sequence

from cachetools import LRUCache

from service.cache.protocol import CachedCode, CodeCache, StoreStatus


class MemoryCache(CodeCache):
    """The ``capacity`` codes used most recently."""

    def __init__(self, capacity: int) -> None:
        self._entries: LRUCache[bytes, CachedCode] = LRUCache(capacity)

    @property
    def status(self) -> StoreStatus:
        """See ``CodeCache``."""
        return StoreStatus("memory")

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``."""
        return [self._entries.get(key) for key in keys]

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``."""
        self._entries.update(entries)
