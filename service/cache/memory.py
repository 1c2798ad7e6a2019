"""A cache of codes and latents in the memory of this process."""

from __future__ import annotations

from collections.abc import Sequence

from cachetools import LRUCache

from service.cache.protocol import CachedCode, CodeCache, StoreStatus

_CODE_BYTES = 512  # the longest packed code of a published tokenizer has 416


class MemoryCache(CodeCache):
    """The ``capacity`` codes used most recently; an entry counts once for each 512 bytes of it, so latents count more."""

    def __init__(self, capacity: int) -> None:
        self._entries: LRUCache[bytes, CachedCode] = LRUCache(capacity, _size)

    @property
    def status(self) -> StoreStatus:
        """See ``CodeCache``."""
        return StoreStatus("memory")

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``."""
        return [self._entries.get(key) for key in keys]

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``."""
        self._entries.update(entry for entry in entries if _size(entry[1]) <= self._entries.maxsize)


def _size(entry: CachedCode) -> int:
    return -(-len(entry.code) // _CODE_BYTES)
