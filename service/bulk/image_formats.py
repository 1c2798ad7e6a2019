"""Writes shards of images in file formats; the same pixels give the same bytes.

==========  ===========================  ==============================================================================
format      files of shard 0             content
==========  ===========================  ==============================================================================
webdataset  images-000000.tar            a sample per image: KEY.png (or .jpg, .webp), KEY.cls with the label
folder      CLASS/KEY.png, ...           a file per image; without labels there are no subfolders
npz         images-000000.npy,           merged at the end into images.npz (``arr_0`` uint8 [N, S, S, 3], uncompressed)
            images-000000.keys.jsonl     and images.keys.jsonl (a line per image: key, label)
==========  ===========================  ==============================================================================
"""

import io
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from models.arrays import Pixels
from service.bulk.destination import Merge
from service.bulk.errors import BulkError
from service.bulk.formats import add_member, archive_key
from service.bulk.shards import Row, Shard
from service.imaging.encoding import DEFAULT_QUALITY, OUTPUT_EXTENSIONS, encode_image

_COPIED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class ImageOptions:
    """How images are written: the ``format`` of shards; ``media_type`` and ``quality`` (of JPEG and WebP; None: the default)
    of images, which ``npz`` ignores; ``classes``, the names of integer labels, which are used if they differ.

    Raises ``BulkError`` for a quality of PNG images.
    """

    format: str
    media_type: str = "image/png"
    quality: int | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and self.media_type == "image/png":
            raise BulkError("PNG is lossless and has no quality: choose JPEG or WebP, or leave out --quality")

    @property
    def settings(self) -> dict[str, Any]:
        """What the manifest says of the images."""
        if self.format == "npz":
            return {"format": self.format, "dtype": "uint8"}
        quality = None if self.media_type == "image/png" else self.quality or DEFAULT_QUALITY
        return {"format": self.format, "media_type": self.media_type, "quality": quality}

    @property
    def merges(self) -> tuple[Merge, ...]:
        """What is merged when all shards are complete."""
        if self.format != "npz":
            return ()
        return Merge("images.npz", "images-*.npy", _write_npz), Merge("images.keys.jsonl", "images-*.jsonl", _join)

    def encode(self, pixels: Pixels) -> bytes:
        """An image uint8 [S, S, 3] as a file; for ``npz`` its pixels."""
        if self.format == "npz":
            return pixels.tobytes()
        return encode_image(pixels, self.media_type, quality=self.quality)

    def files(self, shard: Shard, image_size: int) -> dict[str, bytes]:
        """The contents of a shard's files, by name. Raises ``BulkError`` if two images have the same name."""
        return FORMATS[self.format](shard, self, image_size)


def _webdataset(shard: Shard, options: ImageOptions, _: int) -> dict[str, bytes]:
    written, suffix = io.BytesIO(), OUTPUT_EXTENSIONS[options.media_type]
    keys = _unique([archive_key(row.key) for row in shard.rows])
    with tarfile.open(fileobj=written, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for key, row in zip(keys, shard.rows, strict=True):
            add_member(archive, f"{key}.{suffix}", row.image)
            if row.label is not None:
                add_member(archive, f"{key}.cls", str(row.label).encode())
    return {f"images-{shard.number:06d}.tar": written.getvalue()}


def _folder(shard: Shard, options: ImageOptions, _: int) -> dict[str, bytes]:
    suffix = OUTPUT_EXTENSIONS[options.media_type]
    classes = options.classes or ()
    classes = classes if len(set(classes)) == len(classes) else ()
    names = _unique([f"{_path(row, classes)}.{suffix}" for row in shard.rows])
    return {name: row.image for name, row in zip(names, shard.rows, strict=True)}


def _unique(names: list[str]) -> list[str]:
    for name, count in Counter(names).items():
        if count > 1:
            raise BulkError(f"{count} images would be written as {name}: write --format npz, which needs no names")
    return names


def _path(row: Row, classes: tuple[str, ...]) -> str:
    """``CLASS/KEY`` in characters that file names may have; a key that begins with its class's name does not repeat it."""
    label = row.label
    if label is None:
        return _file_name(row.key)
    if isinstance(label, int) and 0 <= label < len(classes):
        label = classes[label]
    return f"{_file_name(str(label))}/{_file_name(row.key.removeprefix(f'{label}/'))}"


def _file_name(text: str) -> str:
    """The text with characters URL-escaped that a file name cannot contain, or not begin with."""
    escaped = "".join(f"%{ord(one):02X}" if one in '%/\\:*?"<>|' or ord(one) < 32 else one for one in text)
    return f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped or "%"


def _npz(shard: Shard, options: ImageOptions, image_size: int) -> dict[str, bytes]:  # noqa: ARG001
    head = io.BytesIO()
    _write_header(head, len(shard.rows), image_size)
    keys = "".join(json.dumps({"key": row.key, "label": row.label}) + "\n" for row in shard.rows)
    name = f"images-{shard.number:06d}"
    pixels = b"".join([head.getvalue(), *(row.image for row in shard.rows)])
    return {f"{name}.npy": pixels, f"{name}.keys.jsonl": keys.encode()}


def _write_npz(file: BinaryIO, shards: Sequence[Path]) -> None:
    """Writes uint8 [N, S, S, 3] of ``.npy`` files as ``arr_0`` of an uncompressed ``.npz``, in bounded memory."""
    arrays = [np.load(path, mmap_mode="r") for path in shards]
    member = zipfile.ZipInfo("arr_0.npy")  # of a fixed date
    member.file_size = sum(path.stat().st_size for path in shards)  # decides on zip64
    with zipfile.ZipFile(file, "w") as archive, archive.open(member, "w") as target:
        _write_header(target, sum(map(len, arrays)), arrays[0].shape[1])
        for path, array in zip(shards, arrays, strict=True):
            with path.open("rb") as source:
                source.seek(path.stat().st_size - array.nbytes)
                shutil.copyfileobj(source, target, _COPIED_AT_ONCE)


def _write_header(file: Any, count: int, size: int) -> None:
    described = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, described)


def _join(file: BinaryIO, shards: Sequence[Path]) -> None:
    file.writelines(path.read_bytes() for path in shards)


FORMATS: Mapping[str, Callable[[Shard, ImageOptions, int], dict[str, bytes]]] = MappingProxyType(
    {"webdataset": _webdataset, "folder": _folder, "npz": _npz}
)
"""Formats by name. Each function returns the contents of a shard's files by name; an image has S x S pixels."""
