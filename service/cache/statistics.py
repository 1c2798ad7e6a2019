"""Statistics of the codes of a namespace in Redis: counts, memory and time to live by tokenizer and revision.

All keys are counted. Memory (MEMORY USAGE) and time to live (TTL) are measured on a random sample of each revision's keys.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import RedisCluster
from redis.exceptions import NoPermissionError

from service.cache.keys import KeyParts, namespace_prefix
from service.cache.redis.connection import RedisClient
from service.cache.redis.scanning import scan

_KEYS_PER_PIPELINE = 500


@dataclass(frozen=True)
class ServerInfo:
    """A primary. ``version`` is empty if the user lacks ``+info``; ``maxmemory`` is in bytes, 0: no limit."""

    version: str
    used_memory: int
    maxmemory: int
    policy: str


@dataclass(frozen=True)
class RevisionStatistics:
    """The codes of one revision of one tokenizer.

    Attributes:
        uploads: number of keys by the digest of an upload.
        pixels: number of keys by the digest of pixels.
        leases: number of images being computed.
        scoped: how many of these keys belong to one caller alone.
        sampled: size of the sample for the fields below.
        mean_bytes: mean size of a key with its value, by MEMORY USAGE.
        ttl: shortest, median and longest in seconds; None if no sampled key expires.
        without_ttl: number of sampled keys that never expire.
    """

    tokenizer: str
    revision: str
    uploads: int
    pixels: int
    leases: int
    scoped: int
    sampled: int
    mean_bytes: float
    ttl: tuple[int, int, int] | None
    without_ttl: int

    @property
    def keys(self) -> int:
        """Number of keys of every kind."""
        return self.uploads + self.pixels + self.leases

    @property
    def bytes(self) -> int:
        """Memory of all keys, estimated from the sample."""
        return round(self.mean_bytes * self.keys)


@dataclass(frozen=True)
class CacheStatistics:
    """All revisions, the largest first; ``others`` counts keys of the namespace that are not codes."""

    namespace: str
    revisions: Sequence[RevisionStatistics]
    others: int
    servers: Sequence[ServerInfo]


class _Group:
    """Counts of one revision, and a uniform sample of its keys (reservoir sampling)."""

    def __init__(self, size: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.scoped = 0
        self.sample: list[bytes] = []
        self._size = size

    def add(self, key: bytes, parts: KeyParts) -> None:
        self.kinds[parts.kind] += 1
        self.scoped += parts.is_scoped
        if len(self.sample) < self._size:
            self.sample.append(key)
        elif (place := random.randrange(self.kinds.total())) < self._size:  # noqa: S311  not for security
            self.sample[place] = key


async def collect_statistics(client: RedisClient, namespace: str, *, sample: int) -> CacheStatistics:
    """Counts the codes of a namespace, and measures ``sample`` keys of each revision."""
    groups: dict[tuple[str, str], _Group] = {}
    others = 0
    async for key in scan(client, namespace_prefix(namespace)):
        if (parts := KeyParts.of(key, namespace)) is None:
            others += 1
        else:
            groups.setdefault((parts.tokenizer, parts.revision), _Group(sample)).add(key, parts)
    revisions = [await _revision(client, *name, group) for name, group in groups.items()]
    revisions.sort(key=lambda revision: (-revision.keys, revision.tokenizer, revision.revision))
    return CacheStatistics(namespace, revisions, others, await _servers(client))


async def _revision(client: RedisClient, tokenizer: str, revision: str, group: _Group) -> RevisionStatistics:
    sizes: list[int] = []
    lives: list[int] = []
    for start in range(0, len(group.sample), _KEYS_PER_PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for key in group.sample[start : start + _KEYS_PER_PIPELINE]:
            pipeline.memory_usage(key, samples=0)
            pipeline.ttl(key)
        answers = await pipeline.execute()
        # A key may have expired since it was counted.
        pairs = [(size, life) for size, life in zip(answers[::2], answers[1::2], strict=True) if size is not None]
        sizes += [size for size, _ in pairs]
        lives += [life for _, life in pairs]
    ending = sorted(life for life in lives if life >= 0)
    return RevisionStatistics(
        tokenizer,
        revision,
        uploads=group.kinds["upload"],
        pixels=group.kinds["pixels"],
        leases=group.kinds["lease"],
        scoped=group.scoped,
        sampled=len(sizes),
        mean_bytes=sum(sizes) / len(sizes) if sizes else 0.0,
        ttl=(ending[0], ending[len(ending) // 2], ending[-1]) if ending else None,
        without_ttl=lives.count(-1),
    )


async def _servers(client: RedisClient) -> list[ServerInfo]:
    servers = []
    for primary in client.get_primaries() if isinstance(client, RedisCluster) else [client]:
        try:
            info = await primary.execute_command("INFO", "server") | await primary.execute_command("INFO", "memory")
        except NoPermissionError:
            servers.append(ServerInfo("", 0, 0, ""))
            continue
        version = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
        servers.append(
            ServerInfo(version, int(info["used_memory"]), int(info["maxmemory"]), str(info["maxmemory_policy"]))
        )
    return servers
