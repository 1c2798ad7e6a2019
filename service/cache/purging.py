"""Removing codes from a Redis: SCAN finds them, UNLINK takes them away, in pipelines of a bounded length."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.cache.keys import KeyParts, namespace_prefix
from service.cache.redis.connection import RedisClient
from service.cache.redis.scanning import scan

__all__ = ["Selection", "count_codes", "purge_codes"]

_KEYS_OF_A_PIPELINE = 500


@dataclass(frozen=True)
class Selection:
    """The codes of a namespace that are meant: of one tokenizer, of one revision, of both, or, by neither, all."""

    namespace: str
    tokenizer: str | None = None
    revision: str | None = None

    def __contains__(self, key: bytes) -> bool:
        parts = KeyParts.of(key, self.namespace)
        return (
            parts is not None and self.tokenizer in (None, parts.tokenizer) and self.revision in (None, parts.revision)
        )


async def count_codes(client: RedisClient, selection: Selection) -> int:
    """How many keys there are; one that SCAN gives twice, while Redis grows its table, counts twice."""
    return sum([len(keys) async for keys in _selected(client, selection)])


async def purge_codes(client: RedisClient, selection: Selection) -> int:
    """Removes them, and gives how many they were."""
    removed = 0
    async for keys in _selected(client, selection):
        for start in range(0, len(keys), _KEYS_OF_A_PIPELINE):
            # One key a command: those of a Cluster lie on different servers, and its pipeline has no unlink() of its own.
            pipeline = client.pipeline(transaction=False)
            for key in keys[start : start + _KEYS_OF_A_PIPELINE]:
                pipeline.execute_command("UNLINK", key)
            removed += sum(await pipeline.execute())
    return removed


async def _selected(client: RedisClient, selection: Selection) -> AsyncIterator[list[bytes]]:
    async for keys in scan(client, namespace_prefix(selection.namespace)):
        yield [key for key in keys if key in selection]
