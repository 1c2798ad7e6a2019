"""The output folder of a run. A run may be killed at any moment; the next one makes the missing shards.

::

    DEST/tokens-000000.parquet   written under a temporary name, synced, renamed
    DEST/journal.jsonl           first line: the settings; then one line per complete shard. Removed at the end
    DEST/errors.jsonl            one line per broken image: key, reason       } written at the end
    DEST/manifest.json           settings, counts, digests of all files       }

A shard is complete when its line is in the journal, which is written after the shard's files. A truncated line is removed,
and its shard is made again: the same bytes, under the same names. Shards may be added in any order.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from models.atomic_files import PARTIAL_SUFFIX, write_atomically
from service.bulk.entries import Position
from service.bulk.errors import BulkError
from service.bulk.job import Result, RunSettings
from service.bulk.manifest import manifest_of
from service.bulk.shards import Shard

_JOURNAL, _ERRORS, _MANIFEST = "journal.jsonl", "errors.jsonl", "manifest.json"


class MissingShards(NamedTuple):
    """Shards to be made: ``shards`` of them (None: all that follow) from number ``first``, which begins at ``start``."""

    first: int
    start: Position
    shards: int | None


class Destination:
    """An output folder, locked for this process; a context manager. ``done``: whether the output is complete.

    Raises ``BulkError`` if another process writes there, the folder contains other files, or was started with other
    settings.
    """

    def __init__(self, folder: Path, settings: RunSettings) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._records: dict[int, dict[str, Any]] = {}
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
        """Writes the files of a shard, given by name. When this returns, they survive a power failure."""
        if shard.number in self._records:
            raise ValueError(f"shard {shard.number} is complete already")
        for name, content in files.items():
            self._write(name, content)
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

    def finish(self, views: int) -> None:
        """Writes the errors and the manifest; an image has ``views`` rows."""
        records = [record for _, record in sorted(self._records.items())]
        broken = [(key, reason) for record in records for key, reason in record["broken"]]
        errors = b"".join(_line({"key": key, "reason": reason}) for key, reason in broken)
        self._write(_ERRORS, errors)
        document = manifest_of(self._settings, views, records, _described(_ERRORS, errors))
        self._write(_MANIFEST, (json.dumps(document, indent=2) + "\n").encode())
        os.fsync(self._lock)
        (self.folder / _JOURNAL).unlink()
        os.fsync(self._lock)
        self.done = True

    def _open(self) -> None:
        manifest, journal = self.folder / _MANIFEST, self.folder / _JOURNAL
        for partial in self.folder.glob(f"*{PARTIAL_SUFFIX}"):
            partial.unlink()
        if manifest.exists():
            document = json.loads(manifest.read_text(encoding="utf-8"))
            self._compare({name: document.get(name) for name in self._settings})
            shards = enumerate(document["shards"])
            self._records = {number: shard | {"broken": [None] * shard["broken"]} for number, shard in shards}
            journal.unlink(missing_ok=True)  # the last step, if a run was killed before it
            self.done = True
        elif journal.exists():
            self._resume(journal)
        elif any(self.folder.iterdir()):
            raise BulkError(f"{self.folder} is not empty and is not the output of such a run: choose another folder")
        else:
            self._write(_JOURNAL, _line(self._settings))
            os.fsync(self._lock)

    def _resume(self, journal: Path) -> None:
        written = journal.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        settings, *records = map(json.loads, whole.splitlines())
        self._compare(settings)
        self._records = {record["number"]: record for record in records}
        if whole != written:
            with journal.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        for file in (file for record in records for file in record["files"]):
            path = self.folder / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise BulkError(f"{path} is not as it was written: remove {self.folder} and start again")

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


def _described(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()
