"""Writes shards of tokens or latents in file formats; the same tokens give the same bytes.

==========  ============================  =============================================================================
format      files of shard 0              content
==========  ============================  =============================================================================
jsonl       tokens-000000.jsonl           a line per crop: key, view, class_id (the label), tokens
webdataset  tokens-000000.tar             a sample per image: KEY.npy uint16 [K] or [crops, K], KEY.cls with the label
parquet     tokens-000000.parquet         a row per crop: key, view, label, tokens as list<uint16>
npy         tokens-000000.npy, .keys.jsonl  uint16 [images, K] or [images, crops, K]; a line per image: key, label
bin         tokens-000000.bin, .keys.jsonl  the same numbers, little-endian, without a header
==========  ============================  =============================================================================

Latents are float16 or float32 [K, C] instead of uint16 [K]: Parquet files ``latents-000000.parquet`` with a column
``latents`` of lists of the fixed size K x C, or ``latents-000000.npy`` of [images, K, C] or [images, crops, K, C].
"""

import io
import json
import math
import tarfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.codes.latents import to_npy
from service.bulk.entries import LabelType
from service.bulk.errors import BulkError
from service.bulk.shards import Shard

LATENT_FORMATS = ("parquet", "npy")


class TokenLayout(NamedTuple):
    """Crops per image (``views``), tokens per crop (``num_tokens``, K), and the type of labels; of latents their ``dtype``
    and the numbers in each vector (``token_size``, C).
    """

    views: int
    num_tokens: int
    labels: LabelType
    dtype: str = "uint16"
    token_size: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a crop's tokens: [K], or of latents [K, C]."""
        return (self.num_tokens,) if self.token_size is None else (self.num_tokens, self.token_size)


def token_files(shard: Shard, format_name: str, layout: TokenLayout) -> dict[str, bytes]:
    """The contents of a shard's files, by name."""
    files = FORMATS[format_name](shard, layout)
    name = "tokens" if layout.token_size is None else "latents"
    return {f"{name}-{shard.number:06d}{suffix}": content for suffix, content in files.items()}


def check_format(format_name: str, *, latents: bool = False) -> None:
    """Raises ``ModuleNotFoundError`` if the format needs a package that is not installed, and ``BulkError`` if it does not
    hold latents.
    """
    if latents and format_name not in LATENT_FORMATS:
        raise BulkError(f"latents are written as {' or '.join(LATENT_FORMATS)}, not {format_name}")
    if format_name == "parquet":
        import pyarrow.parquet  # noqa: F401


def _json_lines(shard: Shard, layout: TokenLayout) -> dict[str, bytes]:  # noqa: ARG001
    lines = [
        {"key": row.key, "view": view, "class_id": row.label, "tokens": tokens}
        for row in shard.rows
        for view, tokens in enumerate(row.tokens.tolist())
    ]
    return {".jsonl": _lines(lines)}


def _webdataset(shard: Shard, layout: TokenLayout) -> dict[str, bytes]:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for row in shard.rows:
            key = archive_key(row.key)
            members = {"npy": _npy(row.tokens[0] if layout.views == 1 else row.tokens)}
            if row.label is not None:
                members["cls"] = str(row.label).encode()
            for suffix, content in members.items():
                add_member(archive, f"{key}.{suffix}", content)
    return {".tar": written.getvalue()}


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to an archive, without a date or an owner."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def archive_key(key: str) -> str:
    """A key with the dots of its last part URL-escaped: WebDataset readers end a key at the first dot of a file name.

    Those of ``..`` are escaped too, so that an archive is unpacked below its folder.
    """
    *folders, name = key.lstrip("/").split("/")
    parts = ["%2E%2E" if folder == ".." else folder for folder in folders]
    return "/".join([*parts, name.replace("%", "%25").replace(".", "%2E")])


def _parquet(shard: Shard, layout: TokenLayout) -> dict[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = {"integer": pa.int64(), "text": pa.string(), None: pa.null()}[layout.labels]
    flat = pa.array(_stacked(shard, layout).reshape(-1))
    columns = {
        "key": pa.array([row.key for row in shard.rows for _ in range(layout.views)], pa.string()),
        "view": pa.array(np.tile(np.arange(layout.views, dtype=np.uint8), len(shard.rows))),
        "label": pa.array([row.label for row in shard.rows for _ in range(layout.views)], kind),
    }
    if layout.token_size is None:
        offsets = pa.array(np.arange(0, len(flat) + 1, layout.num_tokens, dtype=np.int32))
        columns["tokens"] = pa.ListArray.from_arrays(offsets, flat)
    else:
        columns["latents"] = pa.FixedSizeListArray.from_arrays(flat, math.prod(layout.shape))
    if layout.labels is None:
        del columns["label"]
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written, compression="zstd", use_dictionary=["key", "label"])
    return {".parquet": written.getvalue()}


def _npy_files(shard: Shard, layout: TokenLayout) -> dict[str, bytes]:
    tokens = _stacked(shard, layout)
    return {".npy": _npy(tokens[:, 0] if layout.views == 1 else tokens), ".keys.jsonl": _keys(shard)}


def _bin_files(shard: Shard, layout: TokenLayout) -> dict[str, bytes]:
    return {".bin": _stacked(shard, layout).astype("<u2").tobytes(), ".keys.jsonl": _keys(shard)}


def _stacked(shard: Shard, layout: TokenLayout) -> npt.NDArray[Any]:
    """Uint16 [images, crops, K], or latents [images, crops, K, C]."""
    empty = np.empty((0, layout.views, *layout.shape), layout.dtype)
    return np.concatenate([empty, *(row.tokens[None] for row in shard.rows)])


def _keys(shard: Shard) -> bytes:
    return _lines([{"key": row.key, "label": row.label} for row in shard.rows])


def _npy(array: npt.NDArray[Any]) -> bytes:
    return to_npy(np.ascontiguousarray(array, array.dtype.newbyteorder("<")))


def _lines(values: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


FORMATS: Mapping[str, Callable[[Shard, TokenLayout], dict[str, bytes]]] = MappingProxyType(
    {"jsonl": _json_lines, "webdataset": _webdataset, "parquet": _parquet, "npy": _npy_files, "bin": _bin_files}
)
"""Formats by name. Each function returns the contents of a shard's files by suffix."""
