"""Iterates over the keys of a Redis with SCAN on every primary, in steps that do not block it as ``KEYS`` would."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from redis.asyncio import RedisCluster

from service.cache.redis.connection import RedisClient

_KEYS_PER_STEP = 1000
_SPECIAL = re.compile(rb"([*?\[\]\\^-])")


class Primary(Protocol):
    """A server that holds keys: a single server, the master that Sentinel names, or a primary of a Cluster."""

    async def execute_command(self, *args: Any) -> Any:
        """The server's answer."""


async def primaries(client: RedisClient) -> Sequence[Primary]:
    """All servers that hold keys and are not replicas."""
    if isinstance(client, RedisCluster):
        await client.initialize()
        return client.get_primaries()
    return [client]


async def scan(client: RedisClient, prefix: bytes) -> AsyncIterator[list[bytes]]:
    """Lists of the keys that begin with ``prefix``. A key that exists throughout the scan may occur more than once."""
    pattern = _SPECIAL.sub(rb"\\\1", prefix) + b"*"
    for primary in await primaries(client):
        cursor: object = 0
        while True:
            cursor, keys = await primary.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_PER_STEP)
            yield [key for key in keys if key.startswith(prefix)]
            if int(cursor) == 0:  # type: ignore[call-overload]
                break
