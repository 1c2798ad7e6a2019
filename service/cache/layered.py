"""A small in-memory cache in front of a large shared one."""

from __future__ import annotations

from collections.abc import Sequence

from service.cache.memory import MemoryCache
from service.cache.protocol import CachedCode, Claim, CodeCache, StoreStatus


class LayeredCache(CodeCache):
    """Looks in ``front`` first and copies what ``back`` returns into it. A key's code never changes, so both agree."""

    def __init__(self, front: MemoryCache, back: CodeCache) -> None:
        self._front = front
        self._back = back

    def connect(self) -> None:
        """See ``CodeCache``."""
        self._back.connect()

    @property
    def status(self) -> StoreStatus:
        """See ``CodeCache``."""
        return self._back.status

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``."""
        found = await self._front.get_many(keys)
        missing = [index for index, entry in enumerate(found) if entry is None]
        if missing:
            entries = await self._back.get_many([keys[index] for index in missing])
            for index, entry in zip(missing, entries, strict=True):
                found[index] = entry
            await self._front.put_many([(keys[index], entry) for index in missing if (entry := found[index])])
        return found

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``."""
        await self._front.put_many(entries)
        await self._back.put_many(entries)

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """See ``CodeCache``."""
        return await self._back.claim_many(keys)

    async def release_many(self, keys: Sequence[bytes]) -> None:
        """See ``CodeCache``."""
        await self._back.release_many(keys)

    async def close(self) -> None:
        """See ``CodeCache``."""
        await self._back.close()
