"""What can not be used: counted, named in the log, left out, and too much of it stops."""

from __future__ import annotations

import logging

from models.errors import DataError

__all__ = ["MAX_FAULTY", "BadSamples"]

log = logging.getLogger(__name__)

MAX_FAULTY = 0.01


class BadSamples:
    """Shards and photographs that can not be used, each named once."""

    def __init__(self) -> None:
        self._named: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._named)

    def add(self, name: str, reason: object) -> None:
        """Names one in the log; of the reasons that are given for the same name the first one counts."""
        if name not in self._named:
            self._named[name] = str(reason)
            log.warning("left out %s: %s", name, reason)

    def check(self, total: int) -> None:
        """Raises :class:`DataError` if the faults are more than 1 % of ``total``."""
        if len(self._named) > MAX_FAULTY * total:
            name, reason = next(iter(self._named.items()))
            raise DataError(f"{len(self)} of {total} members can not be used; first: {name}: {reason}")
