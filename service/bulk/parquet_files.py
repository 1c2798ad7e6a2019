"""Parquet files with a column of images, as in Hugging Face datasets."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from service.bulk.entries import Entry, Label, LabelType, integer_label
from service.bulk.errors import BrokenImage, BulkError
from service.bulk.keys import FileKeys, UniqueKeys, refuse

_ROWS_PER_READ = 64
_KEYS_PER_READ = 4096


@dataclass(frozen=True)
class ColumnNames:
    """The columns that are named, or None for the default: ``image``, else the only column of images; ``label``, if there is
    one and ``with_labels``; ``__key__`` or ``key``.
    """

    image: str | None = None
    label: str | None = None
    key: str | None = None
    with_labels: bool = True


@dataclass(frozen=True)
class Columns:
    """The columns of one file, and its number of rows. An image is its bytes, or a struct of ``bytes`` and ``path``.
    ``classes`` are the names of the labels, if the file's Hugging Face features have them.
    """

    image: str
    label: str | None
    key: str | None
    has_paths: bool
    labels: LabelType
    classes: tuple[str, ...] | None
    rows: int


def columns_of(system: AbstractFileSystem, name: str, named: ColumnNames) -> Columns:
    """The columns of a file. Raises ``BulkError`` if it cannot be read, lacks a column, or one has an unsupported type."""
    try:
        with system.open(name, "rb") as stream:
            file = pq.ParquetFile(stream)
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise BulkError(f"cannot read {name}: {error}") from None
    for column in (named.image, named.label, named.key):
        if column is not None and column not in schema.names:
            raise BulkError(f"{name} has no column {column!r}; it has {', '.join(schema.names)}")
    able = [field.name for field in schema if _holds_images(field.type)]
    image = named.image
    if image is None:
        image = "image" if "image" in able else able[0] if len(able) == 1 else None
    if image is None or image not in able:
        found = f"candidates: {', '.join(able)}" if able else f"none of {', '.join(schema.names)} has a suitable type"
        raise BulkError(f"cannot choose the column of images of {name} ({found}): name it with --image-column")
    kind = _plain(schema.field(image).type)
    has_paths = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    key = named.key or next((column for column in ("__key__", "key") if column in schema.names), None)
    if not named.with_labels:
        return Columns(image, None, key, has_paths, None, None, rows)
    label = named.label or ("label" if "label" in schema.names else None)
    labels = None if label is None else _label_type(schema.field(label).type)
    return Columns(image, label, key, has_paths, labels, _class_names(schema, label), rows)


def labels_of(columns: Sequence[Columns], names: Sequence[str]) -> tuple[LabelType, tuple[str, ...] | None]:
    """The type of labels that those of all files can be converted to, and the classes. Raises ``BulkError`` if the names of
    classes differ between files.
    """
    kinds = {one.labels for one in columns} - {None}
    labels: LabelType = kinds.pop() if len(kinds) == 1 else "text" if kinds else None
    known = {one.classes: name for one, name in zip(columns, names, strict=True) if one.classes is not None}
    if len(known) > 1:
        raise BulkError(
            f"{' and '.join(list(known.values())[:2])} have different class names: tokenize them separately"
        )
    return labels, next(iter(known), None) if labels == "integer" else None


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values without dictionaries and extensions."""
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def _holds_images(kind: pa.DataType) -> bool:
    kind = _plain(kind)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    kind, types = _plain(kind), pa.types
    return any(of(kind) for of in (types.is_binary, types.is_large_binary, types.is_binary_view))


def _label_type(kind: pa.DataType) -> LabelType:
    kind = _plain(kind)
    if pa.types.is_null(kind):
        return None
    return "integer" if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else "text"


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


class ParquetFile:
    """The rows of one file. A key is that of the key column, else the image's path, else the file's name and the row.

    Labels are converted to ``labels``.
    """

    def __init__(
        self, system: AbstractFileSystem, name: str, columns: Columns, keys: FileKeys, labels: LabelType
    ) -> None:
        self.name = name
        self._system = system
        self._columns = columns
        self._keys = keys
        self._labels = labels

    def count(self) -> int:
        """Number of rows."""
        return self._columns.rows

    def entries(self, start: int) -> Iterator[Entry]:
        """See ``Part``. Reads only the keys of rows before ``start``."""
        columns, unique = self._columns, UniqueKeys(self._keys)
        if start >= columns.rows:
            return
        wanted = [column for column in (columns.image, columns.label, columns.key) if column is not None]
        with self._system.open(self.name, "rb") as stream:
            file = pq.ParquetFile(stream)
            keys = [columns.key] if columns.key is not None else []
            keys += [f"{columns.image}.path"] if columns.has_paths else []
            if keys and start:
                for row, values in _rows(file, 0, start, keys, _KEYS_PER_READ):
                    unique.entry(self._key(values), row, None, bytes)
            for row, values in _rows(file, start, columns.rows, wanted, _ROWS_PER_READ):
                yield self._entry(unique, row, values)

    def _key(self, values: dict[str, Any]) -> str | None:
        if self._columns.key is not None and (key := values[self._columns.key]) is not None:
            return key.decode(errors="surrogateescape") if isinstance(key, bytes) else str(key)
        image = values.get(self._columns.image)
        path = image.get("path") if isinstance(image, dict) else None
        return str(PurePosixPath(path).with_suffix("")) if path and PurePosixPath(path).name else None

    def _entry(self, unique: UniqueKeys, row: int, values: dict[str, Any]) -> Entry:
        image = values[self._columns.image]
        data = image.get("bytes") if isinstance(image, dict) else image
        key = self._key(values)
        try:
            label = None if self._columns.label is None else _label(values[self._columns.label], self._labels)
        except BrokenImage as error:
            return unique.entry(key, row, None, partial(refuse, str(error)))
        if data is None:
            path = image.get("path") if isinstance(image, dict) else None
            reason = f"the row holds no image, only the path {path}" if path else "the row holds no image"
            return unique.entry(key, row, label, partial(refuse, reason))
        return unique.entry(key, row, label, partial(bytes, data))


def _rows(
    file: pq.ParquetFile, start: int, end: int, columns: list[str], at_once: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and values of the rows from ``start`` to ``end``; skips row groups before them."""
    row, groups = 0, []
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < end and row + rows > start:
            groups.append((group, row))
        row += rows
    row = groups[0][1] if groups else end
    names = [group for group, _ in groups]
    for batch in file.iter_batches(at_once, row_groups=names, columns=columns, use_threads=False):
        first, last = max(start - row, 0), min(end - row, batch.num_rows)
        if first < last:
            yield from enumerate(batch.slice(first, last - first).to_pylist(), row + first)
        row += batch.num_rows


def _label(value: Any, labels: LabelType) -> Label:
    """A value of a label column as a source's type of labels: text for anything but integers, JSON for lists and structs.

    Raises ``BrokenImage`` for an integer of more than 64 bits.
    """
    if value is None or labels is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if labels == "integer":
        return integer_label(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
