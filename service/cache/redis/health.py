"""Whether Redis does what it is used for: logs when that changes, with the server's words."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from service.cache.protocol import CacheOp
from service.cache.redis.circuit_breaker import THRESHOLD

log = logging.getLogger(__name__)

_WORDS_LENGTH = 300


class RedisHealth:
    """The operations that fail at present, of one ``purpose``: those with ``THRESHOLD`` failures in a row, or a probe."""

    def __init__(self, purpose: str, words_of: Callable[[BaseException], str]) -> None:
        self._purpose = purpose
        self._words_of = words_of
        self._failures: Counter[CacheOp] = Counter()
        self._failing: dict[CacheOp, str] = {}

    @property
    def failure(self) -> str | None:
        """What fails and why; None if nothing does."""
        return next((f"{op}: {words}" for op, words in self._failing.items()), None)

    def record_failure(self, op: CacheOp, error: BaseException) -> None:
        """An operation failed. Logs it if nothing failed before."""
        self._failures[op] += 1
        if op != "probe" and self._failures[op] < THRESHOLD:
            return
        is_new = not self._failing
        words = " ".join(self._words_of(error).split())
        self._failing[op] = words[:_WORDS_LENGTH]
        if is_new:
            log.warning("%s: Redis fails: %s", self._purpose, self.failure)

    def record_success(self, op: CacheOp) -> None:
        """An operation succeeded. Logs it if nothing fails any more."""
        self._failures[op] = 0
        if self._failing.pop(op, None) is not None and not self._failing:
            log.info("%s: Redis works again", self._purpose)

    def record_recovery(self) -> None:
        """A probe succeeded: all operations are expected to."""
        for op in tuple(self._failures):
            self.record_success(op)
