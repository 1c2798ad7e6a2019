"""Where each image of a set of plain tar shards begins, so that any of them can be read without the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from models.data.bad_samples import BadSamples
from models.errors import DataError

__all__ = ["ShardIndex", "ShardMember"]


class ShardMember(NamedTuple):
    """An image: what the log calls it, its class, the number of its shard, and its place there in bytes."""

    name: str
    label: int
    shard: int
    offset: int
    size: int


class ShardIndex:
    """Photographs of shards at random access; ``labels`` int64 [N]."""

    def __init__(self, shards: list[Path], table: NDArray[np.int64], keys: NDArray[np.bytes_], names: tuple[str, ...]):
        self.labels: NDArray[np.int64] = table[:, 0].copy()
        self.names = names
        self._shards = shards
        self._places = table[:, 1:]  # [N, 3]: shard, offset, size
        self._keys = keys

    @classmethod
    def open(
        cls,
        cache: Path,
        split: str,
        shards: list[Path],
        described: str,
        names: tuple[str, ...] | None,
        members: Callable[[], Iterable[ShardMember]],
        bad_samples: BadSamples,
    ) -> ShardIndex:
        """Reads the index in ``cache``, or makes it of ``members``.

        ``names`` None: the numbers of the classes are their names. Raises :class:`DataError` if more than 1 % are
        ``bad_samples``, or if there is nothing at all.
        """
        fingerprint = hashlib.sha256(json.dumps([described, names]).encode()).hexdigest()[:12]
        file = cache / f"{split}-{fingerprint}.index.npz"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                found = list(members())
                bad_samples.check(len(found) + len(bad_samples))
                if not found:
                    raise DataError(f"no photographs in {shards[0].parent} for {split}")
                partial = file.with_suffix(".partial")
                with partial.open("wb") as sink:
                    np.savez(
                        sink,
                        table=np.array([member[1:] for member in found], dtype=np.int64),
                        keys=np.array([member.name.encode(errors="surrogateescape") for member in found]),
                    )
                partial.replace(file)
        with np.load(file) as arrays:
            table, keys = arrays["table"], arrays["keys"]
        if names is None:
            names = tuple(str(number) for number in range(int(table[:, 0].max()) + 1))
        return cls(shards, table, keys, names)

    def name(self, row: int) -> str:
        """``shard/key`` of a row."""
        return bytes(self._keys[row]).decode(errors="surrogateescape")

    def read(self, row: int) -> bytes:
        """The bytes of a row's image."""
        shard, offset, size = self._places[row].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            content: bytes = file.read(size)
            return content
