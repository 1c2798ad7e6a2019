"""Dataset that does not fit into memory: images are decoded when needed, in threads, ahead of the training step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Ids, Pixels
from models.data.decoding import decode_image
from models.data.sources import BadSamples, Source
from models.errors import DataError
from models.runtime.transfers import to_device

# A bad image among the first few proves nothing: the fraction counts from this many images on.
MIN_ROWS_TO_JUDGE = 1000


class _Decoded(NamedTuple):
    pixels: Pixels | None  # None: no image of the class could be read
    failures: list[tuple[int, str]]  # rows and reasons


class StreamingDataset:
    """``labels`` int64 [N], indices into ``names``; ``fingerprint`` changes whenever pixels or labels do. Not thread-safe;
    it decodes in its own threads.

    An unreadable image is logged once and replaced by the next readable one of its class. :meth:`batch` raises
    ``DataError`` when more than 1 % of the images read are unreadable.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        *,
        fingerprint: str = "",
        device: torch.device | str = "cpu",
        threads: int = min(16, os.cpu_count() or 1),
    ) -> None:
        self.labels, self.names = source.labels, source.names
        self.fingerprint, self.device = fingerprint, torch.device(device)
        self._source = source
        self._size = size
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._prefetched: tuple[tuple[bytes, bytes], list[Future[_Decoded]]] | None = None
        self._bad_samples = BadSamples()
        self._unreadable: set[int] = set()
        self._read = np.zeros(len(source.labels), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Ids, positions: NDArray[np.float32] | None = None) -> Tensor:
        """The images of ``rows`` int64 [B] as float32 [B, 3, S, S] in [0, 1], on the device.

        Centre crops, or crops at ``positions`` float32 [B, 2] in [0, 1): x and y, from left and top to right and bottom.
        """
        key, futures = self._prefetched or (None, [])
        if key != _key(rows, positions):
            futures = self._submit(rows, positions)
        decoded = [future.result() for future in futures]
        self._read[rows] = True
        for row, reason in (failure for one in decoded for failure in one.failures):
            self._read[row] = True
            self._unreadable.add(row)
            self._bad_samples.add(self._source.name(row), reason)
        self._bad_samples.check(max(int(self._read.sum()), min(MIN_ROWS_TO_JUDGE, len(self))))
        pixels = [one.pixels for one in decoded if one.pixels is not None]
        if len(pixels) < len(rows):
            label = int(self.labels[rows[[one.pixels is None for one in decoded]][0]])
            raise DataError(f"no image of class {self.names[label]} can be read")
        return to_device(torch.from_numpy(np.stack(pixels)), self.device).permute(0, 3, 1, 2).float().div_(255.0)

    def prefetch(self, rows: Ids, positions: NDArray[np.float32] | None = None) -> None:
        """Starts to decode the next :meth:`batch`, which has the same arguments, and returns at once."""
        self._prefetched = _key(rows, positions), self._submit(rows, positions)

    def to(self, device: torch.device | str) -> StreamingDataset:
        """The same dataset with batches on ``device``."""
        return StreamingDataset(self._source, self._size, fingerprint=self.fingerprint, device=device)

    def kept_on_device(self) -> StreamingDataset:
        """The same dataset: it does not fit into memory."""
        return self

    def _submit(self, rows: Ids, positions: NDArray[np.float32] | None) -> list[Future[_Decoded]]:
        crops = [None] * len(rows) if positions is None else [(x, y) for x, y in positions.tolist()]
        return [self._pool.submit(self._decode, row, crop) for row, crop in zip(rows.tolist(), crops, strict=True)]

    def _decode(self, row: int, position: tuple[float, float] | None) -> _Decoded:
        failures: list[tuple[int, str]] = []
        for candidate in self._candidates(row):
            if candidate in self._unreadable:
                continue
            try:
                return _Decoded(decode_image(self._source.read(candidate), self._size, position), failures)
            except (OSError, ValueError) as error:
                failures.append((candidate, str(error)))
        return _Decoded(None, failures)

    def _candidates(self, row: int) -> Iterator[int]:
        """The row, then the following rows of its class, wrapping around once."""
        yield row
        same = np.flatnonzero(self.labels == self.labels[row])
        yield from np.roll(same, -int(np.searchsorted(same, row, side="right")))[:-1].tolist()


def _key(rows: Ids, positions: NDArray[np.float32] | None) -> tuple[bytes, bytes]:
    return rows.astype(np.int64).tobytes(), b"" if positions is None else positions.tobytes()
