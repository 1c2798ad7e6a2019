"""The cache that the settings ask for."""

from __future__ import annotations

from service.cache.layered import LayeredCache
from service.cache.memory import MemoryCache
from service.cache.protocol import CacheObserver, CodeCache, NoCache
from service.settings import Settings

__all__ = ["open_cache"]


def open_cache(settings: Settings, observer: CacheObserver) -> CodeCache:
    """A cache that needs nothing to be there: Redis is connected to when it is first asked.

    Raises ``ValueError`` for a URL that no client can be made from.
    """
    if settings.cache == "off":
        return NoCache()
    if settings.cache == "memory" or settings.redis_url is None:
        return MemoryCache(settings.cache_entries)
    from service.cache.redis.connection import connect  # slow to import
    from service.cache.redis_cache import SOCKET_TIMEOUT, RedisCache

    client = connect(settings.redis_url.get_secret_value(), socket_timeout=SOCKET_TIMEOUT)
    shared = RedisCache(
        client,
        timeout=settings.redis_timeout,
        ttl=settings.cache_ttl or None,
        lease=settings.cache_lease,
        max_value_bytes=settings.cache_value_bytes,
        observer=observer,
    )
    return LayeredCache(MemoryCache(settings.cache_front_entries), shared) if settings.cache_front_entries else shared
