"""Tokens as a source: an output of ``titok tokenize``, or files of tokens without a manifest."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.data.token_folder import TokenFolder, open_tokens
from models.data.token_shards import TokenRow, TokenShard
from service.bulk.entries import Entry, Source
from service.bulk.errors import BulkError

Tokens: TypeAlias = NDArray[np.uint16]


@dataclass(frozen=True)
class TokenPart:
    """The crops of a shard, each an entry of uint16 [K]; with ``view`` only those of that index.

    The key is that of the image; with ``many_views`` the view is appended, as in ``KEY-0``.
    """

    shard: TokenShard
    view: int | None
    many_views: bool

    def count(self) -> int:
        """Number of crops."""
        views = self.shard.shape.views
        if self.view is not None and views is None:
            return sum(1 for _ in self._rows(0))
        return self.shard.count() // (1 if self.view is None or views is None else views)

    def entries(self, start: int) -> Iterator[Entry[Tokens]]:
        """See ``Part``."""
        for row in self._rows(start):
            key = f"{row.key}-{row.view}" if self.many_views else row.key
            yield Entry(key, row.label, partial(_itself, row.ids))

    def _rows(self, start: int) -> Iterator[TokenRow]:
        if self.view is None:
            return self.shard.rows(start)
        return islice((row for row in self.shard.rows() if row.view == self.view), start, None)


def _itself(tokens: Tokens) -> Tokens:
    return tokens


def open_token_source(name: str, *, view: int | None = None) -> tuple[Source[Tokens], TokenFolder]:
    """Opens the tokens at ``name``: those of all crops, or of the crops with index ``view``.

    Raises ``BulkError`` if there is no such view, and ``DataError`` for missing, damaged or changed files.
    """
    folder = open_tokens(Path(name))
    views = folder.shape.views
    if view is not None and views is not None and view >= views:
        raise BulkError(f"{name} has {views} views of each image: choose one of 0 to {views - 1}")
    folder.verify()
    parts = tuple(TokenPart(shard, view, view is None and views not in (None, 1)) for shard in folder.shards)
    total = sum(part.count() for part in parts) if folder.files else None
    source = Source(str(folder.path.resolve()), "tokens", parts, _digest(folder), classes=folder.classes, total=total)
    return source, folder


def _digest(folder: TokenFolder) -> str:
    """Changes with the files: by their digests in the manifest, or without one by names, sizes and times."""
    if folder.files:
        described = [f"{path.name}\0{digest}" for path, (_, digest) in folder.files.items()]
    else:
        files = [(shard.path.name, shard.path.stat()) for shard in folder.shards]
        described = [f"{name}\0{found.st_size}\0{found.st_mtime_ns}" for name, found in files]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()
