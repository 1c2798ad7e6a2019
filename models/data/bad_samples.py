"""Record of unusable samples: each is logged and skipped, and too many of them stop the run."""

from __future__ import annotations

import logging

from models.errors import DataError

log = logging.getLogger(__name__)

MAX_BAD_FRACTION = 0.01


class BadSamples:
    """Shards and images that cannot be used, by name."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, name: str, reason: object) -> None:
        """Logs a sample; only the first reason for a name counts."""
        if name not in self._reasons:
            self._reasons[name] = str(reason)
            log.warning("skipped %s: %s", name, reason)

    def check(self, total: int) -> None:
        """Raises ``DataError`` if more than 1 % of ``total`` samples are bad."""
        if len(self) > MAX_BAD_FRACTION * total:
            name, reason = next(iter(self._reasons.items()))
            raise DataError(f"{len(self)} of {total} samples cannot be used; first: {name}: {reason}")
