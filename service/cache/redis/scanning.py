"""Going through the keys of a Redis without holding it up: SCAN, a little at a time, on every primary.

``KEYS`` would keep Redis from answering anybody until it has seen all of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from redis.asyncio import RedisCluster

from service.cache.redis.connection import RedisClient

__all__ = ["Primary", "primaries", "scan"]

_KEYS_OF_A_STEP = 1000
_SPECIAL = re.compile(rb"([*?\[\]\\^-])")


class Primary(Protocol):
    """A server that holds keys of its own: the only one, a Sentinel's master, or one of a Cluster's."""

    async def execute_command(self, *args: Any) -> Any:
        """What this server answers."""


async def primaries(client: RedisClient) -> Sequence[Primary]:
    """All servers that hold keys and are no replicas."""
    if isinstance(client, RedisCluster):
        await client.initialize()
        return client.get_primaries()
    return [client]


async def scan(client: RedisClient, prefix: bytes) -> AsyncIterator[list[bytes]]:
    """Keys that begin with ``prefix``, in lists; those that are there all the while come, perhaps more than once."""
    pattern = _SPECIAL.sub(rb"\\\1", prefix) + b"*"
    for primary in await primaries(client):
        cursor: object = 0
        while True:
            cursor, keys = await primary.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_OF_A_STEP)
            yield [key for key in keys if key.startswith(prefix)]
            if int(cursor) == 0:  # type: ignore[call-overload]
                break
