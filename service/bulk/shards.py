"""What becomes of a stretch of the source: one shard of the output, first as tokens, then as files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.bulk.entries import Label, Position

__all__ = ["Broken", "Row", "Shard", "ShardFiles"]


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


@dataclass(frozen=True)
class ShardFiles:
    """A shard as it is to be written: how many ``images`` have tokens in it, and its files by their names."""

    number: int
    end: Position
    images: int
    broken: tuple[Broken, ...]
    contents: Mapping[str, bytes]
