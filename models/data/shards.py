"""WebDataset shards as a dataset source: tar files with pairs such as ``000017.jpg`` and ``000017.cls``.

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
from models.data.shard_index import ShardEntry, ShardIndex
from models.data.sources import Sample, Split
from models.data.strict_tar import StrictTarInfo
from models.errors import DataError

# Without classes.json nothing limits the class numbers, and one wrong number would create billions of names.
MAX_UNNAMED_CLASSES = 100_000


def find_shards(folder: Path, split: Split) -> list[Path]:
    """The shards of a split, sorted by name."""
    return sorted([*folder.glob(f"{split}-*.tar"), *folder.glob(f"{split}-*.tar.gz")])


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Class names from ``classes.json``, in the order of their numbers; None without the file.

    Raises ``DataError`` for a file of another form.
    """
    file = folder / "classes.json"
    if not file.exists():
        return None
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        return tuple(str(names[str(number)]) for number in range(len(names)))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{file} is not {{"0": "name", "1": "name", ...}} without gaps: {error!r}') from error


class WebDatasetShards:
    """The shards of one split. See ``Source``. Raises ``DataError`` if there are none."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.names = read_class_names(folder)
        self._split = split
        self._shards = find_shards(folder, split)
        if not self._shards:
            raise DataError(f"no {split}-*.tar or {split}-*.tar.gz in {folder}")

    def fingerprint(self) -> str:
        """Names, sizes and modification times of the shards."""
        return json.dumps([(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in self._shards])

    def count(self, limit: int, bad_samples: BadSamples) -> int:
        """The number of image headers; a shard without a valid end mark is a bad sample."""
        count = 0
        for shard in self._shards:
            for member in _headers(shard, bad_samples):
                count += member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
                if count > limit:
                    return count
        return count

    def samples(self, bad_samples: BadSamples) -> Iterator[Sample]:
        """In the order of the shards."""
        for shard in self._shards:
            for name, sample in _group(shard, _contents(shard, bad_samples), bad_samples):
                try:
                    image = _image_of(sample)
                    label = self._label(sample["cls"])
                except ValueError as error:
                    bad_samples.add(name, error)
                    continue
                yield Sample(name, label, partial(bytes, image))

    def index(self, cache: Path, bad_samples: BadSamples) -> ShardIndex:
        """The offset of each image, cached in ``cache``. Raises ``DataError`` for compressed shards."""
        if packed := [shard.name for shard in self._shards if shard.suffix == ".gz"]:
            raise DataError(
                f"{packed[0]} is one of {len(packed)} compressed shards. Decoded, they exceed the memory limit, and "
                f"compressed files allow no random access: unpack them (gunzip {self._split}-*.tar.gz)"
            )

        def entries() -> Iterator[ShardEntry]:
            for number, shard in enumerate(self._shards):
                try:
                    with shard.open("rb") as file:
                        yield from self._entries(shard, file, number, bad_samples)
                except OSError as error:
                    bad_samples.add(shard.name, error)

        fingerprint = self.fingerprint()
        return ShardIndex.open(cache, self._split, self._shards, fingerprint, self.names, entries, bad_samples)

    def _entries(self, shard: Path, file: BinaryIO, number: int, bad_samples: BadSamples) -> Iterator[ShardEntry]:
        length = shard.stat().st_size
        extents = (
            {"fname": member.name, "data": (member.offset_data, member.size), "__url__": shard.name}
            for member in _headers(shard, bad_samples)
            if member.offset_data + member.size <= length
        )
        for name, sample in _group(shard, extents, bad_samples):
            try:
                offset, size = _image_of(sample)
                file.seek(sample["cls"][0])
                label = self._label(file.read(sample["cls"][1]))
            except ValueError as error:
                bad_samples.add(name, error)
                continue
            yield ShardEntry(name, label, number, offset, size)

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
        raise ValueError("not an image with a class")
    return sample[suffix]


def _contents(shard: Path, bad_samples: BadSamples) -> Iterator[dict[str, Any]]:
    """The files of a shard. A truncated shard is a bad sample; the files before the damage count."""

    def report(error: Exception) -> bool:
        bad_samples.add(shard.name, error.args[0])
        return True

    try:
        # webdataset can open shards itself, but does not close them.
        with shard.open("rb") as stream:
            yield from tariterators.tar_file_expander([{"url": shard.name, "stream": stream}], handler=report)
    except OSError as error:
        bad_samples.add(shard.name, error)


def _group(
    shard: Path, members: Iterable[dict[str, Any]], bad_samples: BadSamples
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Groups files with the same key into a sample, named ``shard/key``."""

    def report(error: Exception) -> bool:
        name = str(error.args[0]).partition(":")[0]
        bad_samples.add(f"{shard.name}/{name}", "two files have this name")
        return True

    for sample in tariterators.group_by_keys(members, handler=report):
        yield f"{shard.name}/{sample['__key__']}", sample


def _headers(shard: Path, bad_samples: BadSamples) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(shard, "r|gz" if shard.suffix == ".gz" else "r:", tarinfo=StrictTarInfo) as archive:
            yield from (member for member in archive if member.isreg())
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        bad_samples.add(shard.name, error)
