"""Parquet files with a column of images, as in Hugging Face datasets."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from service.bulk.entries import Entry, Label, LabelType
from service.bulk.errors import BrokenImage, BulkError

_ROWS_PER_READ = 64


@dataclass(frozen=True)
class Columns:
    """The columns to read. An image is its bytes, or a struct of ``bytes`` and ``path``. ``classes`` are the names of the
    labels, if the file's Hugging Face features have them.
    """

    image: str
    label: str | None
    key: str | None
    labels: LabelType
    classes: tuple[str, ...] | None


def columns_of(
    files: AbstractFileSystem, name: str, *, image: str | None, label: str | None, key: str | None
) -> Columns:
    """The columns of a file: those named, or by default ``image``, else the only column of images; ``label``; ``__key__``
    or ``key``. Raises ``BulkError`` if a column is missing or has an unsupported type.
    """
    with files.open(name, "rb") as stream:
        schema = pq.ParquetFile(stream).schema_arrow
    for named in (image, label, key):
        if named is not None and named not in schema.names:
            raise BulkError(f"{name} has no column {named!r}; it has {', '.join(schema.names)}")
    able = [field.name for field in schema if _holds_images(field.type)]
    if image is None:
        image = "image" if "image" in able else able[0] if len(able) == 1 else None
    if image is None or image not in able:
        found = f"candidates: {', '.join(able)}" if able else "no column has a suitable type"
        raise BulkError(f"cannot choose the column of images of {name} ({found}): name it with --image-column")
    label = "label" if label is None and "label" in schema.names else label
    key = key or next((column for column in ("__key__", "key") if column in schema.names), None)
    return Columns(image, label, key, _label_type(schema, label, name), _class_names(schema, label))


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_type(schema: pa.Schema, label: str | None, name: str) -> LabelType:
    if label is None:
        return None
    kind = schema.field(label).type
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    raise BulkError(f"column {label!r} of {name} has type {kind}: labels are integers or text")


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


class ParquetFile:
    """The rows of one file. A key is that of the key column, else the image's path, else the file's name and the row."""

    def __init__(self, files: AbstractFileSystem, name: str, columns: Columns) -> None:
        self.name = name
        self._system = files
        self._columns = columns

    def count(self) -> int:
        """Number of rows, from the file's footer."""
        with self._system.open(self.name, "rb") as stream:
            rows: int = pq.ParquetFile(stream).metadata.num_rows
        return rows

    def entries(self, start: int) -> Iterator[Entry]:
        """See ``Part``. Skips row groups before ``start``."""
        names = [name for name in (self._columns.image, self._columns.label, self._columns.key) if name is not None]
        with self._system.open(self.name, "rb") as stream:
            file = pq.ParquetFile(stream)
            before, groups = 0, list(range(file.metadata.num_row_groups))
            while groups and before + (rows := file.metadata.row_group(groups[0]).num_rows) <= start:
                before += rows
                groups.pop(0)
            if not groups:
                return
            row = before
            for batch in file.iter_batches(_ROWS_PER_READ, row_groups=groups, columns=names, use_threads=False):
                skipped = min(max(start - row, 0), batch.num_rows)
                for place, values in enumerate(batch.slice(skipped).to_pylist(), row + skipped):
                    yield self._entry(place, values)
                row += batch.num_rows

    def _entry(self, row: int, values: dict[str, Any]) -> Entry:
        image = values[self._columns.image]
        path = image.get("path") if isinstance(image, dict) else None
        data = image.get("bytes") if isinstance(image, dict) else image
        label: Label = None if self._columns.label is None else values[self._columns.label]
        key = None if self._columns.key is None else values[self._columns.key]
        if key is None:
            key = str(PurePosixPath(path).with_suffix("")) if path else f"{PurePosixPath(self.name).stem}-{row:08d}"
        return Entry(str(key), label, partial(_bytes_of, data))


def _bytes_of(data: bytes | None) -> bytes:
    if data is None:
        raise BrokenImage("the row holds no image")
    return data
