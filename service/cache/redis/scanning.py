"""Iterates over the keys of a Redis with SCAN on every primary, in steps that do not block it as ``KEYS`` would."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from service.cache.redis.connection import RedisClient

_KEYS_PER_STEP = 1000
_SPECIAL = re.compile(rb"([*?\[\]\\^-])")


def scan(client: RedisClient, prefix: bytes) -> AsyncIterator[bytes]:
    """The keys that begin with ``prefix``. A key that exists throughout the scan may occur more than once."""
    keys: AsyncIterator[bytes] = client.scan_iter(_SPECIAL.sub(rb"\\\1", prefix) + b"*", count=_KEYS_PER_STEP)
    return keys
