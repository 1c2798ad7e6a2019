"""The output folder of a run. A run may be killed at any moment; the next one makes the missing shards.

::

    DEST/tokens-000000.parquet   written under a temporary name, synced, renamed
    DEST/journal.jsonl           first line: the settings; then one line per complete shard. Removed at the end
    DEST/errors.jsonl            one line per broken image: key, reason       } written at the end
    DEST/manifest.json           settings, counts, digests of all files       }

A shard is complete when its line is in the journal, which is written after the shard's files. A truncated line is removed,
and its shard is made again: the same bytes, under the same names. Shards may be added in any order. Files of shards that are
merged into one are removed after the manifest is written.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from models.atomic_files import PARTIAL_SUFFIX, write_atomically
from service.bulk.entries import Position
from service.bulk.errors import BulkError
from service.bulk.manifest import RunSettings, manifest_of
from service.bulk.shards import Shard

_WRITERS = 16
_JOURNAL, _ERRORS, _MANIFEST = "journal.jsonl", "errors.jsonl", "manifest.json"


class MissingShards(NamedTuple):
    """Shards to be made: ``shards`` of them (None: all that follow) from number ``first``, which begins at ``start``."""

    first: int
    start: Position
    shards: int | None


@dataclass(frozen=True)
class Result:
    """Numbers of images in the output, of images left out, and of shards in the destination, whichever run wrote them."""

    images: int
    broken: int
    shards: int


class Merge(NamedTuple):
    """Shards' files with names like ``pattern`` become one file ``name`` at the end, which ``write`` writes from them."""

    name: str
    pattern: str
    write: Callable[[BinaryIO, Sequence[Path]], object]


class Destination:
    """An output folder, locked for this process; a context manager. ``done``: whether the output is complete.

    Raises ``BulkError`` if another process writes there, the folder contains other files, or was started with other
    settings.
    """

    def __init__(self, folder: Path, settings: RunSettings) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._records: dict[int, dict[str, Any]] = {}
        self._names = set[str]()
        self.done = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise BulkError(f"cannot write to {folder}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError:
            os.close(self._lock)
            raise BulkError(f"another process is writing to {folder}") from None
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def result(self) -> Result:
        """Counts of the complete shards."""
        records = self._records.values()
        images = sum(record["images"] for record in records)
        return Result(images, sum(len(record["broken"]) for record in records), len(records))

    @property
    def missing(self) -> list[MissingShards]:
        """The shards to be made, in order; the last range is open-ended and may turn out to be empty."""
        found, first, start = list[MissingShards](), 0, Position(0, 0)
        for number, record in sorted(self._records.items()):
            if number > first:
                found.append(MissingShards(first, start, number - first))
            first, start = number + 1, Position(*record["end"])
        return [*found, MissingShards(first, start, None)]

    def add(self, shard: Shard, files: Mapping[str, bytes]) -> None:
        """Writes the files of a shard, given by name. When this returns, they survive a power failure.

        Raises ``BulkError`` if another shard has a file of the same name.
        """
        if shard.number in self._records:
            raise ValueError(f"shard {shard.number} is complete already")
        if repeated := self._names.intersection(files):
            raise BulkError(f"two images would be written as {self.folder / min(repeated)}: write another format")
        with ThreadPoolExecutor(_WRITERS) as writers:  # file systems sync several files at once
            list(writers.map(self._write, files, files.values()))
        for folder in sorted({(self.folder / name).parent for name in files} - {self.folder}):
            _sync(folder)
        os.fsync(self._lock)
        record = {
            "number": shard.number,
            "images": len(shard.rows),
            "broken": [[one.key, one.reason] for one in shard.broken],
            "end": list(shard.end),
            "files": [_described(name, content) for name, content in files.items()],
        }
        with (self.folder / _JOURNAL).open("ab") as journal:
            journal.write(_line(record))
            journal.flush()
            os.fsync(journal.fileno())
        self._records[shard.number] = record
        self._names.update(files)

    def finish(self, views: int, merges: Sequence[Merge] = ()) -> None:
        """Writes what is merged, the errors and the manifest; an image has ``views`` rows."""
        records = [record for _, record in sorted(self._records.items())]
        merged = [self._merge(merge, records) for merge in merges]
        broken = [(key, reason) for record in records for key, reason in record["broken"]]
        errors = b"".join(_line({"key": key, "reason": reason}) for key, reason in broken)
        self._write(_ERRORS, errors)
        kept = [
            record | {"files": [file for file in record["files"] if not any(map(partial(_is_part, file), merges))]}
            for record in records
        ]
        document = manifest_of(self._settings, views, kept, _described(_ERRORS, errors), merged)
        self._write(_MANIFEST, (json.dumps(document, indent=2) + "\n").encode())
        os.fsync(self._lock)
        self._clean_up(document)

    def _merge(self, merge: Merge, records: list[dict[str, Any]]) -> dict[str, Any]:
        parts = [self.folder / file["name"] for record in records for file in record["files"] if _is_part(file, merge)]
        path = self.folder / merge.name
        write_atomically(path, lambda file: merge.write(file, parts))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": merge.name, "bytes": path.stat().st_size, "sha256": digest}

    def _clean_up(self, manifest: dict[str, Any]) -> None:
        """Removes the journal, and before it the files that have been merged."""
        kept = {file["name"] for shard in manifest["shards"] for file in shard["files"]}
        _, *records = self._journal_lines()
        for name in {file["name"] for record in records for file in record["files"]} - kept:
            (self.folder / name).unlink(missing_ok=True)
        os.fsync(self._lock)
        (self.folder / _JOURNAL).unlink()
        os.fsync(self._lock)
        self.done = True

    def _journal_lines(self) -> list[dict[str, Any]]:
        """The settings and the records of the shards; a truncated last line is left out."""
        return [json.loads(line) for line in (self.folder / _JOURNAL).read_bytes().split(b"\n")[:-1]]

    def _open(self) -> None:
        manifest, journal = self.folder / _MANIFEST, self.folder / _JOURNAL
        for unfinished in self.folder.rglob(f"*{PARTIAL_SUFFIX}"):
            unfinished.unlink()
        if manifest.exists():
            document = json.loads(manifest.read_text(encoding="utf-8"))
            self._compare({name: document.get(name) for name in self._settings})
            shards = enumerate(document["shards"])
            self._records = {number: shard | {"broken": [None] * shard["broken"]} for number, shard in shards}
            if journal.exists():  # a run was killed before its last step
                self._clean_up(document)
            self.done = True
        elif journal.exists():
            self._resume(journal)
        elif any(self.folder.iterdir()):
            raise BulkError(f"{self.folder} is not empty and is not the output of such a run: choose another folder")
        else:
            self._write(_JOURNAL, _line(self._settings))
            os.fsync(self._lock)

    def _resume(self, journal: Path) -> None:
        settings, *records = self._journal_lines()
        self._compare(settings)
        self._records = {record["number"]: record for record in records}
        with journal.open("r+b") as written:
            written.truncate(journal.read_bytes().rfind(b"\n") + 1)
            os.fsync(written.fileno())
        for file in (file for record in records for file in record["files"]):
            path = self.folder / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise BulkError(f"{path} is not as it was written: remove {self.folder} and start again")
            self._names.add(file["name"])

    def _compare(self, started: RunSettings) -> None:
        for name, before, now in _differences(started, self._settings):
            raise BulkError(
                f"{self.folder} was started with {name} {before}, not {now}: use the same options, or another folder"
            )

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.folder / name, lambda file: file.write(content))


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, str, str]]:
    """(path, before, now) of every value that differs in nested dictionaries."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*before, *now]))
        return [one for key in names for one in _differences(before.get(key), now.get(key), f"{name} {key}".strip())]
    return [] if before == now else [(name, json.dumps(before), json.dumps(now))]


def _is_part(file: Mapping[str, Any], merge: Merge) -> bool:
    return fnmatchcase(file["name"], merge.pattern)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _described(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()
