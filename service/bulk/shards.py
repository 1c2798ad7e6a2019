"""What becomes of a stretch of the source: one shard of the output."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.bulk.entries import Label, Position

__all__ = ["Broken", "Row", "Shard"]


@dataclass(frozen=True)
class Row:
    """One image: ``tokens`` uint16 [views, K]."""

    key: str
    label: Label
    tokens: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Broken:
    """An image that was left out, and why."""

    key: str
    reason: str


@dataclass
class Shard:
    """Shard ``number`` of the output, in the order of the source; ``end`` is the position behind its last entry."""

    number: int
    end: Position
    rows: list[Row] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
