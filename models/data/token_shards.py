"""Reads shards of tokens: Parquet, WebDataset, ``.npy``, ``.bin`` and JSON lines, as ``titok tokenize`` writes them.

==========  ==========================  ===============================================================================
format      files of a shard            content
==========  ==========================  ===============================================================================
parquet     NAME.parquet                a row per crop: tokens (a list column); key, view and label if there are any
webdataset  NAME.tar                    a sample per image: KEY.npy [K] or [views, K]; KEY.cls with the label, if any
npy         NAME.npy, .keys.jsonl       [images, K] or [images, views, K]; a line per image: key, label. May be missing
bin         NAME.bin, .keys.jsonl       the same numbers as little-endian uint16, without a header
jsonl       NAME.jsonl                  a line per crop: tokens, class_id (the label); key and view if there are any
==========  ==========================  ===============================================================================

A line of 1d-tokenizer's pre-tokenization (``scripts/pretokenization.py``) has ``class_id`` and ``tokens`` alone. An image
without a key gets one from the name of the file and its number there; a crop without a view is view 0.
"""

from __future__ import annotations

import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from models.data.tar_samples import DAMAGE, read_samples
from models.errors import DataError

Label: TypeAlias = int | str | None

KEYS_SUFFIX = ".keys.jsonl"
BLOCK_ROWS = 4096
"""Most crops in a block, unless one image has more."""

_IMAGES_PER_BLOCK = 256
_LARGEST_ID = (1 << 16) - 1


class TokenRow(NamedTuple):
    """A crop: the ``key`` and ``label`` of its image, the index ``view`` of the crop, and ``ids`` uint16 [K]."""

    key: str
    view: int
    label: Label
    ids: NDArray[np.uint16]


@dataclass(frozen=True)
class TokenBlock:
    """Consecutive crops: ``keys``, ``views`` and ``labels`` [B], ``ids`` uint16 [B, K]."""

    keys: Sequence[str]
    views: Sequence[int]
    labels: Sequence[Label]
    ids: NDArray[np.uint16]

    def rows(self) -> Iterator[TokenRow]:
        """The crops one by one; their ids share the memory of the block's."""
        return map(TokenRow, self.keys, self.views, self.labels, self.ids)

    def since(self, start: int) -> TokenBlock:
        """The crops from number ``start`` on; all of them if it is negative."""
        kept = slice(max(0, start), None)
        return TokenBlock(self.keys[kept], self.views[kept], self.labels[kept], self.ids[kept])


@dataclass(frozen=True)
class TokenShape:
    """The shape of tokens: ``num_tokens`` (K), ``views`` per image, ids from 0 to ``codebook_size`` - 1; None: unknown."""

    num_tokens: int | None = None
    views: int | None = None
    codebook_size: int | None = None


@dataclass(frozen=True)
class TokenShard(ABC):
    """A file of tokens at ``path``; ``shape`` and ``crops``, their number, are what is known of it.

    Reading raises ``DataError`` for any defect.
    """

    path: Path
    shape: TokenShape = TokenShape()
    crops: int | None = None

    def count(self) -> int:
        """Number of crops. If it is not known, archives and JSON lines are read to the end for it."""
        if self.crops is not None:
            return self.crops
        with _reading(self.path):
            return self._count()

    def blocks(self, start: int = 0) -> Iterator[TokenBlock]:
        """The crops from number ``start`` on, in blocks. Memory is bounded by the size of a block."""
        with _reading(self.path):
            for block in self._blocks(start):
                if len(block.keys):
                    self._check(block)
                    yield block

    def rows(self, start: int = 0) -> Iterator[TokenRow]:
        """The crops from number ``start`` on."""
        for block in self.blocks(start):
            yield from block.rows()

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def _blocks(self, start: int) -> Iterator[TokenBlock]: ...

    def _check(self, block: TokenBlock) -> None:
        shape, ids = self.shape, block.ids
        if ids.ndim != 2 or shape.num_tokens not in (None, ids.shape[1]):
            raise ValueError(f"tokens of shape {list(ids.shape)}, not [crops, {shape.num_tokens or 'K'}]")
        if shape.codebook_size is not None and ids.max(initial=0) >= shape.codebook_size:
            raise ValueError(f"token id {ids.max()} is not in 0 to {shape.codebook_size - 1}")
        for name, values, types in (("label", block.labels, {int, str, NoneType}), ("view", block.views, {int})):
            if wrong := set(map(type, values)) - types:
                raise ValueError(f"a {name} of type {wrong.pop().__name__}")

    def _key(self, number: int) -> str:
        return f"{self.path.name.partition('.')[0]}-{number:08d}"


class JsonLinesShard(TokenShard):
    """A line per crop."""

    def _count(self) -> int:
        with self.path.open("rb") as file:
            return sum(1 for _ in _lines(file))

    def _blocks(self, start: int) -> Iterator[TokenBlock]:
        with self.path.open("rb") as file:
            lines = enumerate(islice(_lines(file), start, None), start)
            while rows := [(number, orjson.loads(line)) for number, line in islice(lines, BLOCK_ROWS)]:
                yield TokenBlock(
                    [str(row["key"]) if "key" in row else self._key(number) for number, row in rows],
                    [row.get("view", 0) for _, row in rows],
                    [row.get("class_id") for _, row in rows],
                    as_ids(np.array([row["tokens"] for _, row in rows])),
                )


class WebDatasetShard(TokenShard):
    """A sample per image in a tar."""

    def _count(self) -> int:
        return sum(len(block.keys) for block in self._blocks(0))

    def _blocks(self, start: int) -> Iterator[TokenBlock]:
        with self.path.open("rb") as file:
            images = self._images(file)
            while some := list(islice(images, _IMAGES_PER_BLOCK)):
                keys = [key for key, _, ids in some for _ in ids]
                views = [view for _, _, ids in some for view in range(len(ids))]
                labels = [label for _, label, ids in some for _ in ids]
                yield TokenBlock(keys, views, labels, np.concatenate([ids for _, _, ids in some])).since(start)
                start -= len(keys)

    def _images(self, file: BinaryIO) -> Iterator[tuple[str, Label, NDArray[np.uint16]]]:
        """Key, label and ids uint16 [views, K] of each image."""
        # Both files of a sample are side by side: no others are read before it is returned.
        for key, members in read_samples(file, _content, mode="r:", waiting_bytes=0):
            sample = dict(members)
            if "npy" not in sample:
                raise ValueError(f"{key}.npy is missing")
            ids = as_ids(np.load(io.BytesIO(sample["npy"]), allow_pickle=False))
            label = _number_or_text(sample["cls"].decode()) if "cls" in sample else None
            yield _unescaped(key), label, ids.reshape(-1, ids.shape[-1])


class ParquetShard(TokenShard):
    """A row per crop in columns."""

    def _count(self) -> int:
        return int(self._open().metadata.num_rows)

    def _blocks(self, start: int) -> Iterator[TokenBlock]:
        file = self._open()
        names = set(file.schema_arrow.names)
        if "tokens" not in names:
            raise ValueError(f"no column tokens among {', '.join(sorted(names))}")
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if number + size <= start:
                number += size
                continue
            for batch in file.iter_batches(BLOCK_ROWS, [group], sorted(names & {"key", "view", "label", "tokens"})):
                yield self._block(batch, number).since(start - number)
                number += len(batch)

    def _block(self, batch: Any, number: int) -> TokenBlock:
        import pyarrow.compute as pc

        count, columns = len(batch), {name: batch.column(name) for name in batch.schema.names}
        lengths = pc.unique(pc.list_value_length(columns["tokens"])).to_pylist()
        if len(lengths) > 1 or lengths == [None]:
            raise ValueError(f"rows {number} to {number + count - 1} have {lengths} tokens, not all the same number")
        values: dict[str, list[Any]] = {
            name: column.to_pylist() for name, column in columns.items() if name != "tokens"
        }
        return TokenBlock(
            [str(key) for key in values["key"]]
            if "key" in values
            else [self._key(row) for row in range(number, number + count)],
            values.get("view", [0] * count),
            values.get("label", [None] * count),
            as_ids(pc.list_flatten(columns["tokens"]).to_numpy(zero_copy_only=False)).reshape(count, -1),
        )

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, memory_map=True)


class ArrayShard(TokenShard):
    """A memory-mapped array with a line per image in a file beside it, if there is one."""

    def array(self) -> NDArray[Any]:
        """The memory-mapped array as integers [images, views, K]. Raises ``DataError``."""
        with _reading(self.path):
            return self._array()

    @abstractmethod
    def _array(self) -> NDArray[Any]: ...

    def _count(self) -> int:
        images, views = self._array().shape[:2]
        return int(images * views)

    def _blocks(self, start: int) -> Iterator[TokenBlock]:
        array = self._array()
        images, views, num_tokens = array.shape
        step = max(1, BLOCK_ROWS // views)
        lines = self._image_lines(start // views)
        for first in range(start // views, images, step):
            ids = as_ids(array[first : first + step]).reshape(-1, num_tokens)
            named = list(islice(lines, len(ids) // views))
            if len(named) * views != len(ids):
                raise ValueError(f"fewer lines in {self._keys_path().name} than images")
            keys = [key for key, _ in named for _ in range(views)]
            labels = [label for _, label in named for _ in range(views)]
            block = TokenBlock(keys, [*range(views)] * len(named), labels, ids)
            yield block.since(start - first * views)
        if self._keys_path().exists() and next(lines, None) is not None:
            raise ValueError(f"more lines in {self._keys_path().name} than images")

    def _keys_path(self) -> Path:
        return self.path.with_suffix(KEYS_SUFFIX)

    def _image_lines(self, start: int) -> Iterator[tuple[str, Label]]:
        """Key and label of the images from number ``start`` on."""
        if not self._keys_path().exists():
            for number in range(start, len(self._array())):
                yield self._key(number), None
            return
        with self._keys_path().open("rb") as file:
            for line in islice(_lines(file), start, None):
                image = orjson.loads(line)
                yield str(image["key"]), image.get("label")


class NumpyShard(ArrayShard):
    """A ``.npy`` file."""

    def _array(self) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if array.ndim not in (2, 3) or not array.shape[-1]:
            raise ValueError(f"an array of shape {list(array.shape)}, not [images, K] or [images, views, K]")
        return array.reshape(len(array), -1, array.shape[-1]) if len(array) else array.reshape(0, 1, array.shape[-1])


class BinaryShard(ArrayShard):
    """A ``.bin`` file, whose shape must be known."""

    def _array(self) -> NDArray[Any]:
        if self.shape.num_tokens is None:
            raise ValueError("a .bin file has no shape: its folder needs a manifest.json, or give the number of tokens")
        shape = (-1, self.shape.views or 1, self.shape.num_tokens)
        if not self.path.stat().st_size:  # cannot be mapped
            return np.empty((0, *shape[1:]), np.uint16)
        return np.memmap(self.path, "<u2", "r").reshape(shape)


FORMATS: Mapping[str, tuple[str, type[TokenShard]]] = MappingProxyType(
    {
        "parquet": (".parquet", ParquetShard),
        "webdataset": (".tar", WebDatasetShard),
        "npy": (".npy", NumpyShard),
        "bin": (".bin", BinaryShard),
        "jsonl": (".jsonl", JsonLinesShard),
    }
)
"""Suffix and reader of each format."""


def as_ids(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Integers of any type as uint16. Raises ``ValueError`` for other values, and for ids outside of 0 to 65,535."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"values of type {values.dtype}, not token ids")
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= _LARGEST_ID:
        raise ValueError(f"token ids from {values.min()} to {values.max()}, not in 0 to {_LARGEST_ID}")
    return values.astype(np.uint16, copy=False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what reading a damaged or unsuitable file raises into a ``DataError`` that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError, *DAMAGE) as error:
        raise DataError(f"{path}: {error}") from error


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that are not blank."""
    return filter(bytes.strip, file)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # noqa: S101 - read_samples gives regular files alone
    return file.read()


def _unescaped(key: str) -> str:
    """The key before its dots were escaped for readers that end a key at the first dot."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}" + name.replace("%2E", ".").replace("%25", "%")


def _number_or_text(label: str) -> int | str:
    try:
        return int(label)
    except ValueError:
        return label
