"""The interface of a cache of codes, its values, and the observer of its traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "half-open", "open"]
CacheOp = Literal["get", "claim", "put", "probe", "consume"]
CacheFailure = Literal["timeout", "connection", "response", "value", "too_long", "backlog"]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Where codes or counts are kept, and what fails there at present."""

    store: Literal["off", "memory", "redis"]
    failure: str | None = None

    def document(self) -> dict[str, str | None]:
        """The JSON form."""
        return {"store": self.store, "status": "failing" if self.failure else "ok", "reason": self.failure}


@dataclass(frozen=True, slots=True)
class CachedCode:
    """A packed code, or the bytes of latents, and the (width, height) of the image it was made from."""

    code: bytes
    original_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Claim:
    """Who computes an image: the caller if it ``is_own``, nobody if its code is ``known`` by now, else another process."""

    is_own: bool
    known: CachedCode | None = None


class CodeCache:
    """The interface of a cache of codes, by the keys of a ``KeySpace``; this base class stores nothing. Used from one event
    loop; its methods never raise.
    """

    def connect(self) -> None:
        """Connects in the background, which shows at once whether the settings are right. Optional."""

    @property
    def status(self) -> StoreStatus:
        """Where codes are stored, and what fails."""
        return StoreStatus("off")

    async def get_many(self, keys: Sequence[bytes]) -> list[CachedCode | None]:
        """The known codes, in the order of the keys. May be cancelled at any time."""
        return [None] * len(keys)

    async def put_many(self, entries: Sequence[tuple[bytes, CachedCode]]) -> None:
        """Stores codes, best effort, possibly later."""

    async def claim_many(self, keys: Sequence[bytes]) -> list[Claim]:
        """Claims the computation of unknown codes; every claim is the caller's own where processes share no store. A claim
        ends with ``put_many``, with ``release_many``, or by itself after a while.
        """
        return [Claim(is_own=True)] * len(keys)

    async def release_many(self, keys: Sequence[bytes]) -> None:
        """Releases the caller's own claims."""

    async def close(self) -> None:
        """Finishes pending writes, within a bounded time."""


class CacheObserver:
    """Receives what happens in a Redis cache; this one ignores it. Called in the event loop: must be quick, never raise."""

    def finished(self, op: CacheOp, seconds: float) -> None:
        """A round trip succeeded."""

    def failed(self, op: CacheOp, reason: CacheFailure) -> None:
        """A round trip failed (``timeout``, ``connection``, ``response``), a value was unreadable (``value``) or too long
        (``too_long``), or was dropped because too many wait to be written (``backlog``).
        """

    def breaker(self, state: BreakerState) -> None:
        """The state of the circuit breaker has changed."""
