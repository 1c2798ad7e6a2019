"""Index of uncompressed tar shards: the offset of each image, for random access."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from models.arrays import Ids
from models.atomic_files import write_atomically
from models.data.bad_samples import BadSamples
from models.errors import DataError


class ShardEntry(NamedTuple):
    """An image in a shard: ``name`` for the log, its label, the shard's number, and offset and size in bytes."""

    name: str
    label: int
    shard: int
    offset: int
    size: int


class ShardIndex:
    """Images of shards with random access; ``labels`` int64 [N], indices into ``names``."""

    def __init__(self, shards: list[Path], table: Ids, keys: NDArray[np.bytes_], names: tuple[str, ...] | None) -> None:
        self.labels: Ids = table[:, 0].copy()
        self.names = tuple(map(str, range(int(self.labels.max()) + 1))) if names is None else names
        self._shards = shards
        self._extents = table[:, 1:]  # [N, 3]: shard, offset, size
        self._keys = keys

    @classmethod
    def open(
        cls,
        cache: Path,
        split: str,
        shards: list[Path],
        fingerprint: str,
        names: tuple[str, ...] | None,
        entries: Callable[[], Iterable[ShardEntry]],
        bad_samples: BadSamples,
    ) -> ShardIndex:
        """Reads the index from ``cache``, or builds it from ``entries``.

        With ``names`` None, class numbers serve as names. Raises ``DataError`` if more than 1 % are ``bad_samples``, or
        if there is no image.
        """
        digest = hashlib.sha256(json.dumps([fingerprint, names]).encode()).hexdigest()[:12]
        file = cache / f"{split}-{digest}.index.npz"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                found = list(entries())
                bad_samples.check(len(found) + len(bad_samples))
                if not found:
                    raise DataError(f"no images in {shards[0].parent} for {split}")
                table = np.array([entry[1:] for entry in found], dtype=np.int64)
                keys = np.array([entry.name.encode(errors="surrogateescape") for entry in found])
                write_atomically(file, lambda sink: np.savez(sink, table=table, keys=keys))
        with np.load(file) as arrays:
            return cls(shards, arrays["table"], arrays["keys"], names)

    def name(self, row: int) -> str:
        """``shard/key`` of an image."""
        return bytes(self._keys[row]).decode(errors="surrogateescape")

    def read(self, row: int) -> bytes:
        """The bytes of an image file. Raises ``OSError``."""
        shard, offset, size = self._extents[row].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            content: bytes = file.read(size)
            return content
