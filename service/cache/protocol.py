"""The seams of the cache: what tokenization calls, the values that pass, and who is told how it went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["BreakerState", "CacheObserver", "CachedCode", "Claim", "CodeCache", "NoCache", "NullCacheObserver"]

BreakerState = Literal["closed", "half-open", "open"]


@dataclass(frozen=True, slots=True)
class CachedCode:
    """A packed code and the (width, height) of the image it was made from."""

    code: bytes
    original_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Claim:
    """Who computes an image: the caller if it ``is_own``, nobody if its code is ``known`` by now, else another process."""

    is_own: bool
    known: CachedCode | None = None


class CodeCache(Protocol):
    """Where codes are kept, by the keys of a ``KeySpace``. Used from one event loop; nothing raises."""

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """The codes known, in the order of the keys. May be cancelled at any time."""

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """Keeps codes, best effort and not necessarily at once."""

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """Asks, for codes that were not known, whether to compute them; where nobody can tell, yes. A claim ends with
        ``put_many``, with ``release_many``, or by itself after a while.
        """

    async def release_many(self, keys: Sequence[bytes]) -> None:
        """Gives up claims of the caller's own."""

    async def close(self) -> None:
        """Finishes what was begun, within a bounded time."""


class NoCache:
    """Knows nothing."""

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """See ``CodeCache``."""
        return [None] * len(keys)

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """See ``CodeCache``."""

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """See ``CodeCache``. Nobody can tell."""
        return [Claim(is_own=True)] * len(keys)

    async def release_many(self, keys: Sequence[bytes]) -> None:
        """See ``CodeCache``."""

    async def close(self) -> None:
        """See ``CodeCache``."""


class CacheObserver(Protocol):
    """Told of a cache's traffic, in the event loop; must be quick and never raise."""

    def finished(self, op: str, seconds: float) -> None:
        """A round trip succeeded: ``get``, ``claim``, ``put`` or ``probe``."""

    def failed(self, op: str, reason: str) -> None:
        """A round trip failed by ``timeout``, ``connection`` or ``response``; a value was unreadable (``value``), too
        long (``too_long``), or dropped because others wait to be written (``backlog``).
        """

    def breaker(self, state: BreakerState) -> None:
        """The circuit breaker has changed."""


class NullCacheObserver:
    """Listens to nothing."""

    def finished(self, op: str, seconds: float) -> None:
        """See ``CacheObserver``."""

    def failed(self, op: str, reason: str) -> None:
        """See ``CacheObserver``."""

    def breaker(self, state: BreakerState) -> None:
        """See ``CacheObserver``."""
