"""Photographs in WebDataset shards: tar files of ``000017.jpg`` and ``000017.cls``, side by side.

::

    DIR/train-0000.tar, train-0001.tar.gz, ...     DIR/val-0000.tar, ...
    DIR/classes.json   {"0": "group/name", ...}    without it class 7 is called "7"
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from webdataset import tariterators

from models.data.bad_samples import BadSamples
from models.data.decoding import IMAGE_SUFFIXES
from models.data.shard_index import ShardIndex, ShardMember
from models.data.sources import Sample, Split
from models.data.strict_tar import StrictTarInfo
from models.errors import DataError

__all__ = ["WebDatasetShards", "find_shards", "read_class_names"]

# Without classes.json nothing says how many classes there are, and one wrong number would make billions of names.
MAX_UNNAMED_CLASSES = 100_000


def find_shards(folder: Path, split: Split) -> list[Path]:
    """The shards of a split, by name."""
    return sorted([*folder.glob(f"{split}-*.tar"), *folder.glob(f"{split}-*.tar.gz")])


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Names of the classes by their numbers; None without ``classes.json``, :class:`DataError` if it is no such list."""
    file = folder / "classes.json"
    if not file.exists():
        return None
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        return tuple(str(names[str(number)]) for number in range(len(names)))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{file} is not {{"0": "name", "1": "name", ...}} without a gap: {error!r}') from error


class WebDatasetShards:
    """The shards of one split."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.names = read_class_names(folder)
        self._split = split
        self._shards = find_shards(folder, split)
        if not self._shards:
            raise DataError(f"no {split}-*.tar or {split}-*.tar.gz in {folder}")

    def described(self) -> str:
        """Names, sizes and times of the shards."""
        return json.dumps([(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in self._shards])

    def count(self, enough: int, bad_samples: BadSamples) -> int:
        """How many images the headers announce; a shard that is not whole to its end mark is a fault."""
        count = 0
        for shard in self._shards:
            for member in _headers(shard, bad_samples):
                count += member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
                if count > enough:
                    return count
        return count

    def samples(self, bad_samples: BadSamples) -> Iterator[Sample]:
        """In the order of the shards."""
        for shard in self._shards:
            for name, sample in _grouped(shard, _contents(shard, bad_samples), bad_samples):
                try:
                    image = _image_of(sample)
                    label = self._label(sample["cls"])
                except ValueError as error:
                    bad_samples.add(name, error)
                    continue
                yield Sample(name, label, partial(bytes, image))

    def members(self, cache: Path, bad_samples: BadSamples) -> ShardIndex:
        """An index of where each image begins, made once and kept in ``cache``."""
        if packed := [shard.name for shard in self._shards if shard.suffix == ".gz"]:
            raise DataError(
                f"{packed[0]} is one of {len(packed)} compressed shards that are too large to hold decoded, and nothing "
                f"inside a compressed file can be read at random: unpack them (gunzip {self._split}-*.tar.gz)"
            )
        return ShardIndex.open(
            cache,
            self._split,
            self._shards,
            self.described(),
            self.names,
            lambda: self._found(bad_samples),
            bad_samples,
        )

    def _found(self, bad_samples: BadSamples) -> Iterator[ShardMember]:
        for number, shard in enumerate(self._shards):
            try:
                with shard.open("rb") as file:
                    yield from self._found_in(shard, file, number, bad_samples)
            except OSError as error:
                bad_samples.add(shard.name, error)

    def _found_in(self, shard: Path, file: BinaryIO, number: int, bad_samples: BadSamples) -> Iterator[ShardMember]:
        length = shard.stat().st_size
        extents = (
            {"fname": member.name, "data": (member.offset_data, member.size), "__url__": shard.name}
            for member in _headers(shard, bad_samples)
            if member.offset_data + member.size <= length
        )
        for name, sample in _grouped(shard, extents, bad_samples):
            try:
                offset, size = _image_of(sample)
                file.seek(sample["cls"][0])
                label = self._label(file.read(sample["cls"][1]))
            except ValueError as error:
                bad_samples.add(name, error)
                continue
            yield ShardMember(name, label, number, offset, size)

    def _label(self, content: bytes) -> int:
        label = int(content)
        if self.names is None and not 0 <= label < MAX_UNNAMED_CLASSES:
            raise ValueError(f"class {label} is not in 0 to {MAX_UNNAMED_CLASSES - 1}, and there is no classes.json")
        if self.names is not None and not 0 <= label < len(self.names):
            raise ValueError(f"class {label} is not in classes.json, which has 0 to {len(self.names) - 1}")
        return label


def _image_of(sample: dict[str, Any]) -> Any:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None or "cls" not in sample:
        raise ValueError("not an image with its class")
    return sample[suffix]


def _contents(shard: Path, bad_samples: BadSamples) -> Iterator[dict[str, Any]]:
    """The files of a shard; one that ends early is a fault, and what came before counts."""

    def broken(error: Exception) -> bool:
        bad_samples.add(shard.name, error.args[0])
        return True

    try:
        # webdataset opens shards by itself too, but leaves them open.
        with shard.open("rb") as stream:
            yield from tariterators.tar_file_expander([{"url": shard.name, "stream": stream}], handler=broken)
    except OSError as error:
        bad_samples.add(shard.name, error)


def _grouped(
    shard: Path, members: Iterable[dict[str, Any]], bad_samples: BadSamples
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files with one key are one sample, named ``shard/key``."""

    def doubled(error: Exception) -> bool:
        name = str(error.args[0]).partition(":")[0]
        bad_samples.add(f"{shard.name}/{name}", "two files have this name")
        return True

    for sample in tariterators.group_by_keys(members, handler=doubled):
        yield f"{shard.name}/{sample['__key__']}", sample


def _headers(shard: Path, bad_samples: BadSamples) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(shard, "r|gz" if shard.suffix == ".gz" else "r:", tarinfo=StrictTarInfo) as archive:
            for member in archive:
                if member.isreg():
                    yield member
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        bad_samples.add(shard.name, error)
