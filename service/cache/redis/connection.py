"""Opens a Redis client by URL: a single server, the master that Sentinel names, or a Cluster.

::

    redis://user:password@host:6379/0        rediss:// with TLS        unix:///path/to/socket
    redis+sentinel://user:password@host:26379,host:26379/service/0
    redis+cluster://user:password@host:6379  rediss+cluster:// with TLS

Query parameters are those of redis-py: ``?ssl_ca_certs=/path``, ``?protocol=2``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

RedisClient = Redis | RedisCluster

_CONNECTIONS = 16
_SENTINEL_PORT = 26379


def connect(url: str, *, socket_timeout: float) -> RedisClient:
    """A client that connects on demand, never retries, and returns bytes. Connecting and each answer may take
    ``socket_timeout`` seconds. Raises ``ValueError`` for a URL of none of the forms above.
    """
    scheme = urlsplit(url).scheme
    options: dict[str, Any] = {
        "socket_connect_timeout": socket_timeout,
        "socket_timeout": socket_timeout,
        "max_connections": _CONNECTIONS,
        # A retry would finish after the caller has stopped waiting.
        "retry": Retry(NoBackoff(), 0),
    }
    if scheme in ("redis", "rediss", "unix"):
        return Redis.from_url(url, **options)
    if scheme.endswith("+cluster"):
        return RedisCluster.from_url(url.replace("+cluster", "", 1), **options)
    if scheme == "redis+sentinel":
        return _master(url, options)
    raise ValueError(f"{scheme}:// is not a Redis URL")


async def disconnect(client: RedisClient) -> None:
    """Closes the connections of a client, and those to its Sentinels."""
    await client.aclose()
    if isinstance(client, Redis) and isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _master(url: str, options: dict[str, Any]) -> RedisClient:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise ValueError("a Sentinel URL needs a service name: redis+sentinel://host:26379/service")
    addresses = []
    for address in hosts.split(","):
        host, _, port = address.rpartition(":") if ":" in address else (address, "", str(_SENTINEL_PORT))
        addresses.append((host, int(port)))
    login = {name: unquote(value) for name, value in (("username", username), ("password", password)) if value}
    sentinel = Sentinel(addresses, **options, **login, **dict(parse_qsl(parts.query)))  # type: ignore[no-untyped-call]
    master: Redis = sentinel.master_for(service, db=int(database or 0))
    return master
