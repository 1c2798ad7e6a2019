"""Codes of images already seen, so that the same image needs no decoding, no queue and no device.

::

    LayeredCache ── MemoryCache      the most recently used, in this process
              └──── RedisCache       shared by front ends and replicas; behind a circuit breaker

Keys (``keys.py``) hold all that decides the ids: the image's digest, the tokenizer, its revision. A cache can only help:
what it returns is checked like anything from outside, and no failure of it is a failure of a request.
"""

from service.cache.keys import KeySpace
from service.cache.layered import LayeredCache
from service.cache.memory import MemoryCache
from service.cache.protocol import CachedCode, CacheObserver, Claim, CodeCache, NoCache, NullCacheObserver

__all__ = [
    "CacheObserver",
    "CachedCode",
    "Claim",
    "CodeCache",
    "KeySpace",
    "LayeredCache",
    "MemoryCache",
    "NoCache",
    "NullCacheObserver",
]
