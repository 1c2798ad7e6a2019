"""What a Redis holds of a namespace: codes by tokenizer and revision, their memory and their time to live.

Keys are counted, all of them. What Redis has to be asked for key by key (MEMORY USAGE, TTL) is asked for a random sample of
each revision's keys, and said to be that.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import NoPermissionError

from service.cache.keys import KeyParts, namespace_prefix
from service.cache.redis.connection import RedisClient
from service.cache.redis.scanning import primaries, scan

__all__ = ["Census", "RevisionCensus", "ServerFacts", "take_census"]

_COMMANDS_OF_A_PIPELINE = 500


@dataclass(frozen=True)
class ServerFacts:
    """A primary; ``version`` is empty where the user may not ask (``+info``). ``maxmemory`` is in bytes, 0: no bound."""

    version: str
    used_memory: int
    maxmemory: int
    policy: str


@dataclass(frozen=True)
class RevisionCensus:
    """The codes of one revision of a tokenizer.

    Attributes:
        uploads: keys by the digest of an upload.
        pixels: keys by the digest of pixels.
        leases: images being computed.
        scoped: how many of these are one caller's alone.
        sampled: keys that were asked for the two below.
        mean_bytes: of a key with its value, by MEMORY USAGE.
        ttl: shortest, median and longest in seconds; None where no key of the sample expires.
        without_ttl: keys of the sample that never expire.
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
        """All of them."""
        return self.uploads + self.pixels + self.leases

    @property
    def bytes(self) -> int:
        """Memory of all keys, by the mean of the sample."""
        return round(self.mean_bytes * self.keys)


@dataclass(frozen=True)
class Census:
    """All revisions, the largest first; ``others`` are keys of the namespace that are no codes."""

    namespace: str
    revisions: Sequence[RevisionCensus]
    others: int
    servers: Sequence[ServerFacts]


class _Group:
    """Counts of one revision, and a sample in which each of its keys is as likely as any other (reservoir sampling)."""

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
        elif (place := random.randrange(self.kinds.total())) < self._size:  # noqa: S311  nothing secret
            self.sample[place] = key


async def take_census(client: RedisClient, namespace: str, *, sample: int) -> Census:
    """Counts the codes of a namespace, and looks at ``sample`` keys of each revision more closely."""
    groups: dict[tuple[str, str], _Group] = {}
    others = 0
    async for keys in scan(client, namespace_prefix(namespace)):
        for key in keys:
            if (parts := KeyParts.of(key, namespace)) is None:
                others += 1
            else:
                groups.setdefault((parts.tokenizer, parts.revision), _Group(sample)).add(key, parts)
    revisions = [await _revision(client, *name, group) for name, group in groups.items()]
    revisions.sort(key=lambda revision: -revision.keys)
    return Census(namespace, revisions, others, await _servers(client))


async def _revision(client: RedisClient, tokenizer: str, revision: str, group: _Group) -> RevisionCensus:
    sizes: list[int] = []
    lives: list[int] = []
    for start in range(0, len(group.sample), _COMMANDS_OF_A_PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for key in group.sample[start : start + _COMMANDS_OF_A_PIPELINE]:
            pipeline.memory_usage(key, samples=0)
            pipeline.ttl(key)
        answers = await pipeline.execute()
        # A key may have gone since it was counted.
        pairs = [(size, life) for size, life in zip(answers[::2], answers[1::2], strict=True) if size is not None]
        sizes += [size for size, _ in pairs]
        lives += [life for _, life in pairs]
    ending = sorted(life for life in lives if life >= 0)
    return RevisionCensus(
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


async def _servers(client: RedisClient) -> list[ServerFacts]:
    servers = []
    for primary in await primaries(client):
        try:
            facts = {
                **await primary.execute_command("INFO", "server"),
                **await primary.execute_command("INFO", "memory"),
            }
        except NoPermissionError:
            servers.append(ServerFacts("", 0, 0, ""))
            continue
        name = "Valkey" if "valkey_version" in facts else "Redis"
        version = facts.get("valkey_version", facts.get("redis_version", "?"))
        servers.append(
            ServerFacts(
                f"{name} {version}",
                used_memory=int(facts["used_memory"]),
                maxmemory=int(facts["maxmemory"]),
                policy=str(facts["maxmemory_policy"]),
            )
        )
    return servers
