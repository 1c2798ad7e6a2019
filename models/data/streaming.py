"""Photographs that are too many to hold: each is decoded when its turn comes, in threads, ahead of the device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.bad_samples import BadSamples
from models.data.decoding import decode_image
from models.data.sources import IndexedSource
from models.errors import DataError

__all__ = ["StreamingDataset"]

BATCHES_AHEAD = 2
# One fault among the first rows that are read says nothing yet: the share counts from this many on.
ROWS_TO_JUDGE = 1000


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8] | None  # None: no row of the class could be read
    faulty: list[tuple[int, str]]


class StreamingDataset:
    """``labels`` int64 [N], positions in ``names``. For one thread; the threads that decode are its own.

    A photograph that can not be read is named once, and the next one of its class that can be stands in for it;
    :class:`DataError` when they are more than 1 % of those read.
    """

    def __init__(
        self,
        members: IndexedSource,
        size: int,
        *,
        device: torch.device | str = "cpu",
        threads: int = min(16, os.cpu_count() or 1),
    ) -> None:
        self.labels: NDArray[np.int64] = members.labels
        self.names: tuple[str, ...] = members.names
        self.device = torch.device(device)
        self._members = members
        self._size = size
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._ahead: dict[tuple[bytes, bytes], list[Future[_Decoded]]] = {}
        self._faults = BadSamples()
        self._unreadable: set[int] = set()
        self._read = np.zeros(len(members.labels), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator | None = None) -> Tensor:
        """The images of ``rows`` int64 [B] as float32 [B, 3, S, S] in [0, 1], on the device.

        Centre squares; with a ``generator`` squares at random places, which takes torch.rand(B, 2) from it.
        """
        places = _places(rows, generator)
        waiting = self._ahead.pop(_key(rows, places), None) or self._submit(rows, places)
        decoded = [future.result() for future in waiting]
        self._read[rows] = True
        for row, reason in (fault for one in decoded for fault in one.faulty):
            self._read[row] = True
            self._unreadable.add(row)
            self._faults.add(self._members.name(row), reason)
        self._faults.check(max(int(self._read.sum()), min(ROWS_TO_JUDGE, len(self))))
        pixels = [one.pixels for one in decoded if one.pixels is not None]
        if len(pixels) < len(rows):
            label = int(self.labels[rows[[one.pixels is None for one in decoded]][0]])
            raise DataError(f"no photograph of the class {self.names[label]} can be read")
        images = torch.from_numpy(np.stack(pixels))
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device).permute(0, 3, 1, 2).float().div_(255.0)

    def prefetch(self, rows: NDArray[np.int64], generator: torch.Generator | None = None) -> None:
        """Begins to decode what :meth:`batch` will be asked for, and returns at once.

        ``generator`` in the state in which the batch will find its own. Of more than two such batches the oldest is
        given up; a batch that was not foreseen is decoded when it is asked for.
        """
        places = _places(rows, generator)
        key = _key(rows, places)
        if key in self._ahead:
            return
        while len(self._ahead) >= BATCHES_AHEAD:
            for future in self._ahead.pop(next(iter(self._ahead))):
                future.cancel()
        self._ahead[key] = self._submit(rows, places)

    def to(self, device: torch.device | str) -> StreamingDataset:
        """The same photographs with batches on ``device``."""
        return StreamingDataset(self._members, self._size, device=device)

    def _submit(self, rows: NDArray[np.int64], places: NDArray[np.float32] | None) -> list[Future[_Decoded]]:
        squares = [None] * len(rows) if places is None else [(x, y) for x, y in places.tolist()]
        return [
            self._pool.submit(self._decode, row, square) for row, square in zip(rows.tolist(), squares, strict=True)
        ]

    def _decode(self, row: int, place: tuple[float, float] | None) -> _Decoded:
        faulty: list[tuple[int, str]] = []
        for candidate in self._stand_ins(row):
            if candidate in self._unreadable:
                continue
            try:
                return _Decoded(decode_image(self._members.read(candidate), self._size, place), faulty)
            except (OSError, ValueError) as error:
                faulty.append((candidate, str(error)))
        return _Decoded(None, faulty)

    def _stand_ins(self, row: int) -> Iterator[int]:
        """The row itself, then those of its class that follow it, round once."""
        yield row
        same = np.flatnonzero(self.labels == self.labels[row])
        yield from np.roll(same, -int(np.searchsorted(same, row, side="right")))[:-1].tolist()


def _places(rows: NDArray[np.int64], generator: torch.Generator | None) -> NDArray[np.float32] | None:
    return None if generator is None else torch.rand(len(rows), 2, generator=generator).numpy()


def _key(rows: NDArray[np.int64], places: NDArray[np.float32] | None) -> tuple[bytes, bytes]:
    return rows.astype(np.int64).tobytes(), b"" if places is None else places.tobytes()
