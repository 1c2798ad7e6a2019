"""Opens a Redis client by URL (``service/redis_url.py``): a single server, the master that Sentinel names, or a Cluster."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from service.redis_url import RedisUrl

RedisClient = Redis | RedisCluster

CONNECTIONS = 16
"""Connections of a client, at most (to each server of a Cluster)."""


def connect(url: str, *, socket_timeout: float) -> RedisClient:
    """A client that connects on demand, never retries, and returns bytes. Connecting and each answer may take
    ``socket_timeout`` seconds, unless the URL says otherwise. Raises ``ValueError`` for an invalid URL.
    """
    parsed = RedisUrl.parse(url)
    defaults: dict[str, Any] = {
        "socket_connect_timeout": socket_timeout,
        "socket_timeout": socket_timeout,
        # A retry would finish after the caller has stopped waiting.
        "retry": Retry(NoBackoff(), 0),
        # With them, a connection that was closed while it was idle, or has an unread answer, is not noticed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    options = defaults | {"max_connections": CONNECTIONS} | dict(parsed.options)
    if parsed.kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(*address) for address in parsed.addresses], **options)
    if parsed.kind == "sentinel":
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            parsed.addresses, sentinel_kwargs=defaults | dict(parsed.sentinel_options), **options
        )
        master: Redis = sentinel.master_for(parsed.service)
        return master
    if parsed.addresses:
        options["host"], options["port"] = parsed.addresses[0]
    return Redis(**options)


async def drop_connections(client: RedisClient) -> None:
    """Closes idle connections: the next commands resolve the server's name, or ask Sentinels or the Cluster, again."""
    if isinstance(client, RedisCluster):
        await client.aclose()
    else:
        await client.connection_pool.disconnect(inuse_connections=False)


async def disconnect(client: RedisClient) -> None:
    """Closes the connections of a client, and those to its Sentinels."""
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()
