"""Tokens as PyTorch datasets: with random access (:class:`TokenDataset`), or streamed (:class:`TokenStream`).

Both give a crop as a dictionary of ``ids`` int64 [K], the ``label`` of its image (an integer or a text; -1 or "" if it has
none), the ``key`` of its image, and the index ``view`` of the crop; PyTorch's default collation takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from models.arrays import Ids
from models.data.token_folder import TokenFolder, open_tokens
from models.data.token_shards import ArrayShard, Label, TokenRow, TokenShard
from models.errors import DataError


class TokenSample(TypedDict):
    """A crop; see the module."""

    ids: Tensor
    label: int | str
    key: str
    view: int


class TokenDataset(Dataset[TokenSample]):
    """Crops by rows 0 to N - 1. Ids in ``.npy`` and ``.bin`` files are memory-mapped, others are read into memory as uint16.

    Attributes:
        folder: where the tokens are from.
        num_tokens: K.
        codebook_size: ids are smaller; None without a manifest.
        images: the image of each row, int64 [N], from 0 on; the crops of an image are consecutive rows.
        views: the index of each row's crop, int32 [N].
        keys: texts [images].
        labels: int64 or texts [images]; -1 or "" without a label.

    Raises ``DataError``: there are no tokens, a file is damaged, crops of different lengths, labels of different types.
    """

    def __init__(self, tokens: Path | str | TokenFolder) -> None:
        self.folder = _opened(tokens)
        parts = [part for part in map(_read, self.folder.shards) if part is not None]
        if not parts:
            raise DataError(f"there are no tokens in {self.folder.path}")
        lengths = {part.ids.shape[1] for part in parts}
        if len(lengths) > 1:
            raise DataError(f"{self.folder.path} has crops of {', '.join(map(str, sorted(lengths)))} tokens")
        (self.num_tokens,) = lengths
        self.codebook_size = self.folder.shape.codebook_size
        self.images: Ids = np.cumsum(np.concatenate([part.is_first for part in parts])) - 1
        self.views: NDArray[np.int32] = np.concatenate([part.views for part in parts])
        self.keys: NDArray[Any] = np.concatenate([part.keys for part in parts])
        self.labels = _label_array([label for part in parts for label in part.labels.tolist()], self.folder)
        self._parts = [part.ids for part in parts]
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> TokenSample:
        row = range(len(self))[row]
        image = self.images[row]
        ids = torch.from_numpy(self.ids(np.array([row]))[0])
        return _sample(str(self.keys[image]), int(self.views[row]), self.labels[image], ids)

    def ids(self, rows: Ids) -> Ids:
        """The ids int64 [B, K] of ``rows`` int64 [B]."""
        found = np.empty((len(rows), self.num_tokens), np.int64)
        part_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(part_of_row):
            chosen = part_of_row == number
            found[chosen] = self._parts[number][rows[chosen] - self._starts[number]]
        return found


class TokenStream(IterableDataset[TokenSample]):
    """Crops in an order that depends on the seed and the epoch, split over processes and ``DataLoader`` workers.

    The order of shards is random, and crops are drawn from a buffer of ``shuffle_buffer`` crops; 0 keeps the stored order.
    Each process gets a consecutive part of the shuffled shards, and each of its workers a consecutive part of that: every
    crop occurs once, and processes differ by at most one crop. Memory is bounded by the buffer, in every worker.

    ``rank`` and ``world_size`` are those of ``torch.distributed`` if it is initialised. ``num_rows``: crops of this process.
    Raises ``DataError``, also while reading.
    """

    def __init__(
        self,
        tokens: Path | str | TokenFolder,
        *,
        seed: int = 0,
        shuffle_buffer: int = 65_536,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.folder = _opened(tokens)
        is_distributed = distributed.is_available() and distributed.is_initialized()
        if rank is None or world_size is None:
            rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if is_distributed else (0, 1)
        self._counts = [shard.count() for shard in self.folder.shards]
        self._seed, self._buffer = seed, shuffle_buffer
        self._rank = rank
        self._part = _split(range(sum(self._counts)), rank, world_size)
        # Shared memory, so that persistent workers see a new value.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def num_rows(self) -> int:
        """Crops of this process in an epoch."""
        return len(self._part)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, on which the order depends; call it before each one."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[TokenSample]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        seed = [self._seed, int(self._epoch)]
        order = np.arange(len(self._counts))
        if self._buffer:
            np.random.default_rng(seed).shuffle(order)
        rows = self._rows(order.tolist(), _split(self._part, number, workers))
        if self._buffer:
            rows = _shuffled(rows, self._buffer, np.random.default_rng([*seed, self._rank, number]))
        for key, view, label, ids in rows:
            yield _sample(key, view, label, torch.from_numpy(ids.astype(np.int64)))

    def _rows(self, order: list[int], part: range) -> Iterator[TokenRow]:
        """The rows ``part`` of the shards in ``order``."""
        first = 0
        for number in order:
            wanted = range(max(part.start, first), min(part.stop, first + self._counts[number]))
            if wanted:
                yield from islice(self.folder.shards[number].rows(wanted.start - first), len(wanted))
            first += self._counts[number]


class _Part(NamedTuple):
    """A shard in memory: ``ids`` integers [N, K], ``is_first`` bool [N]: a row begins an image; ``keys`` and ``labels`` of
    the images.
    """

    ids: NDArray[Any]
    views: NDArray[np.int32]
    is_first: NDArray[np.bool_]
    keys: NDArray[Any]
    labels: NDArray[Any]


def _read(shard: TokenShard) -> _Part | None:
    """The crops of a shard, or None if there are none."""
    parts, key, view = list[_Part](), "", -1
    for block in shard.blocks():
        names = np.array(block.keys, np.dtypes.StringDType())
        views = np.array(block.views, np.int32)
        # A row begins an image if its key is another one, or its view does not follow.
        is_first = np.concatenate([[names[0] != key], names[1:] != names[:-1]])
        is_first |= np.diff(views, prepend=view) <= 0
        key, view = names[-1], views[-1]
        labels = np.array(block.labels, dtype=object)
        ids = block.ids[:0] if isinstance(shard, ArrayShard) else block.ids
        parts.append(_Part(ids, views, is_first, names[is_first], labels[is_first]))
    if not parts:
        return None
    whole = _Part(*map(np.concatenate, zip(*parts, strict=True)))
    if isinstance(shard, ArrayShard):
        array = shard.array()
        return whole._replace(ids=array.reshape(-1, array.shape[-1]))
    return whole


def _label_array(labels: list[Label], folder: TokenFolder) -> NDArray[Any]:
    types = {type(label) for label in labels if label is not None}
    if len(types) > 1:
        raise DataError(f"{folder.path} has integers and texts as labels")
    if types == {str}:
        return np.array(["" if label is None else label for label in labels], np.dtypes.StringDType())
    return np.array([-1 if label is None else label for label in labels], np.int64)


def _opened(tokens: Path | str | TokenFolder) -> TokenFolder:
    return tokens if isinstance(tokens, TokenFolder) else open_tokens(Path(tokens))


def _sample(key: str, view: int, label: Any, ids: Tensor) -> TokenSample:
    shown = -1 if label is None else label if isinstance(label, str) else int(label)
    return {"ids": ids, "label": shown, "key": key, "view": view}


def _split(rows: range, number: int, parts: int) -> range:
    """Part ``number`` of ``parts`` consecutive ones whose lengths differ by at most one."""
    return rows[len(rows) * number // parts : len(rows) * (number + 1) // parts]


def _shuffled(rows: Iterable[TokenRow], size: int, random: np.random.Generator) -> Iterator[TokenRow]:
    """The rows, each drawn from ``size`` of them; the last ones from what is left."""
    waiting = list[TokenRow]()
    for row in rows:
        own = row._replace(ids=row.ids.copy())  # which otherwise keeps its whole block in memory
        if len(waiting) < size:
            waiting.append(own)
        else:
            place = int(random.integers(size))
            drawn, waiting[place] = waiting[place], own
            yield drawn
    for place in random.permutation(len(waiting)):
        yield waiting[place]
