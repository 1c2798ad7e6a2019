"""Counts and removes codes in a Redis, by SCAN and pipelines of UNLINK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.cache.keys import KeyParts, namespace_prefix
from service.cache.redis.connection import RedisClient
from service.cache.redis.scanning import scan

_KEYS_PER_PIPELINE = 500


@dataclass(frozen=True)
class Selection:
    """Selects the codes of a namespace by tokenizer and revision; None selects all."""

    namespace: str
    tokenizer: str | None = None
    revision: str | None = None

    def __contains__(self, key: bytes) -> bool:
        parts = KeyParts.of(key, self.namespace)
        return (
            parts is not None and self.tokenizer in (None, parts.tokenizer) and self.revision in (None, parts.revision)
        )


async def count_codes(client: RedisClient, selection: Selection) -> int:
    """Number of selected keys. A key that SCAN returns twice, while Redis resizes its table, counts twice."""
    return sum([key in selection async for key in scan(client, namespace_prefix(selection.namespace))])


async def purge_codes(client: RedisClient, selection: Selection) -> int:
    """Removes the selected keys and returns how many were removed."""
    removed, keys = 0, list[bytes]()
    async for key in scan(client, namespace_prefix(selection.namespace)):
        keys += [key] if key in selection else []
        if len(keys) == _KEYS_PER_PIPELINE:
            removed += await _remove(client, keys)
            keys.clear()
    return removed + await _remove(client, keys)


async def _remove(client: RedisClient, keys: Sequence[bytes]) -> int:
    # One key per command: a Cluster spreads them over servers. Its pipeline's own unlink() does nothing.
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command("UNLINK", key)
    return sum(await pipeline.execute())
