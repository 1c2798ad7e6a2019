"""Opens the cache that the settings configure."""

from __future__ import annotations

from service.cache.memory import MemoryCache
from service.cache.protocol import CacheObserver, CodeCache
from service.settings import Settings


def open_cache(settings: Settings, observer: CacheObserver) -> CodeCache:
    """A cache as configured. Does not connect to Redis yet."""
    if settings.cache == "off":
        return CodeCache()
    if settings.cache == "memory" or settings.redis_url is None:
        return MemoryCache(settings.cache_entries)
    from service.cache.redis_cache import RedisCache  # slow to import

    return RedisCache(
        settings.redis_url.get_secret_value(),
        namespace=settings.cache_namespace,
        timeout=settings.redis_timeout,
        ttl=settings.cache_ttl or None,
        lease=settings.cache_lease,
        front_entries=settings.cache_front_entries,
        max_value_bytes=settings.cache_value_bytes,
        observer=observer,
    )
