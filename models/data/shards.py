"""WebDataset shards as a dataset source: tar files with pairs such as ``000017.jpg`` and ``000017.cls``.

::

    DIR/train-0000.tar, train-0001.tar.gz, ...     DIR/val-0000.tar, ...     DIR/train/0000.tar.zst, ...
    DIR/classes.json   {"0": "group/name", ...}    without it class 7 is called "7"
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock

from models.arrays import Ids
from models.atomic_files import write_atomically
from models.data.decoding import IMAGE_SUFFIXES
from models.data.listing import list_files, state_of
from models.data.sources import BadSamples, Split
from models.data.splits import split_of_file, split_of_name
from models.data.tar_samples import DAMAGE, TAR_SUFFIXES, decompressed, read_samples
from models.errors import DataError

# Without classes.json nothing limits the class numbers, and one wrong number would create billions of names.
MAX_UNNAMED_CLASSES = 100_000
_INDEX_VERSION = 2  # raised if other members of an archive become samples


def find_shards(folder: Path, split: Split) -> list[Path]:
    """The shards of a split (see :mod:`models.data.splits`) in and below a folder, sorted by name."""
    found = ((name, split_of_file(name).split) for name in list_files(folder, TAR_SUFFIXES))
    return [folder / name for name, of in found if of is not None and split_of_name(of) == split]


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


class _Entry(NamedTuple):
    name: str
    label: int
    shard: int
    offset: int  # of the image in its shard, in bytes
    size: int


class WebDatasetShards:
    """The images of one split's shards. See ``Source``. ``cache`` keeps their offsets, and compressed shards unpacked.

    Files without image or class are added to ``bad_samples``. Raises ``DataError`` if these are more than 1 %, or if there
    are no shards or no images.
    """

    def __init__(self, folder: Path, split: Split, cache: Path, bad_samples: BadSamples) -> None:
        self._shards = find_shards(folder, split)
        if not self._shards:
            raise DataError(f"no archive in {folder} names the split {split}, as {split}-0000.tar does")
        self._folder = folder
        self._class_names = read_class_names(folder)
        described = json.dumps([_INDEX_VERSION, self.fingerprint(), self._class_names])
        digest = hashlib.sha256(described.encode()).hexdigest()[:12]
        self._plain = [
            shard if shard.suffix.lower() == ".tar" else cache / f"{split}-{digest}-{number}.unpacked"
            for number, shard in enumerate(self._shards)
        ]
        file = cache / f"{split}-{digest}.index.npz"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                self._write_index(file, bad_samples)
        with np.load(file) as arrays:
            table, self._keys = arrays["table"], arrays["keys"]
        self.labels: Ids = table[:, 0].copy()
        self._extents = table[:, 1:]  # [N, 3]: shard, offset, size
        self.names = self._class_names or tuple(map(str, range(int(self.labels.max()) + 1)))

    def fingerprint(self) -> str:
        """Names, sizes and modification times of the shards."""
        return json.dumps([(self._name(shard), *state_of(shard)) for shard in self._shards])

    def _name(self, shard: Path) -> str:
        return shard.relative_to(self._folder).as_posix()

    def name(self, row: int) -> str:
        """``shard/key`` of an image."""
        return bytes(self._keys[row]).decode(errors="surrogateescape")

    def read(self, row: int) -> bytes:
        """The bytes of an image file. Raises ``OSError``."""
        shard, offset, size = self._extents[row].tolist()
        with self._plain[shard].open("rb") as file:
            file.seek(offset)
            content: bytes = file.read(size)
            return content

    def _write_index(self, file: Path, bad_samples: BadSamples) -> None:
        entries = [entry for number in range(len(self._shards)) for entry in self._entries(number, bad_samples)]
        bad_samples.check(len(entries) + len(bad_samples))
        if not entries:
            raise DataError(f"no images in {self._shards[0].parent} for {file.name.partition('-')[0]}")
        table = np.array([entry[1:] for entry in entries], dtype=np.int64)
        keys = np.array([entry.name.encode(errors="surrogateescape") for entry in entries])
        _write(file, lambda sink: np.savez(sink, table=table, keys=keys))

    def _entries(self, number: int, bad_samples: BadSamples) -> Iterator[_Entry]:
        """The images of a shard, which is unpacked if it is not yet."""
        shard, plain = self._shards[number], self._plain[number]
        try:
            if plain != shard and not plain.exists():
                _unpack(shard, plain)
            with plain.open("rb") as file:
                length = plain.stat().st_size
                extents = read_samples(
                    file,
                    lambda _, member: (member.offset_data, member.size),
                    mode="r:",
                    follow=lambda target: target or (length, 1),  # one byte after the end
                    waiting_bytes=sys.maxsize,  # none are read
                )
                for key, files in extents:
                    name = f"{self._name(shard)}/{key}"
                    whole = {suffix: (at, size) for suffix, (at, size) in files if at + size <= length}
                    image = next((whole[suffix] for suffix in IMAGE_SUFFIXES if suffix in whole), None)
                    if image is None or "cls" not in whole:
                        bad_samples.add(name, "not an image with a class")
                        continue
                    file.seek(whole["cls"][0])
                    try:
                        label = self._label(file.read(whole["cls"][1]))
                    except ValueError as error:
                        bad_samples.add(name, error)
                    else:
                        yield _Entry(name, label, number, *image)
        except (OSError, *DAMAGE) as error:
            bad_samples.add(self._name(shard), error)

    def _label(self, content: bytes) -> int:
        label = int(content)
        if self._class_names is None and not 0 <= label < MAX_UNNAMED_CLASSES:
            raise ValueError(f"class {label} is not in 0 to {MAX_UNNAMED_CLASSES - 1}, and there is no classes.json")
        if self._class_names is not None and not 0 <= label < len(self._class_names):
            raise ValueError(f"class {label} is not in classes.json, which has 0 to {len(self._class_names) - 1}")
        return label


def _unpack(shard: Path, target: Path) -> None:
    """Decompresses a shard, or the part before the damage. Raises ``OSError`` if it cannot be opened."""

    def chunks() -> Iterator[bytes]:
        with suppress(OSError, *DAMAGE), decompressed(packed, shard.name) as stream:
            while chunk := stream.read1(1 << 20):
                yield chunk

    with shard.open("rb") as packed:
        _write(target, lambda sink: sink.writelines(chunks()))


def _write(file: Path, write: Callable[[BinaryIO], object]) -> None:
    try:
        write_atomically(file, write)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write to {file.parent}: {reason}; choose another cache folder") from error
