"""A cache of token codes by image digest: a repeated image needs no decoding, no queue and no device.

::

    MemoryCache     LRU, in this process
    RedisCache      shared by front ends and replicas, behind a circuit breaker (``redis/``) and a small MemoryCache

Keys (``keys.py``) contain everything that decides the ids: the image's digest, the tokenizer, its revision. Values are
validated on read, and a failing cache never fails a request.
"""

from service.cache.keys import KeySpace
from service.cache.memory import MemoryCache
from service.cache.protocol import CachedCode, CacheObserver, Claim, CodeCache

__all__ = [
    "CacheObserver",
    "CachedCode",
    "Claim",
    "CodeCache",
    "KeySpace",
    "MemoryCache",
]
