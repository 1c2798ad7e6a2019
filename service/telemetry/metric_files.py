"""Files in which processes count their metrics, on a disk that may be full.

prometheus_client maps files with holes: on a full disk, writing into a hole ends the process by SIGBUS. Here, disk space is
allocated before it is mapped. Without it, a metric is counted in memory only, and exported as soon as there is space.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, mmap_dict, multiprocess, values
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

_INITIAL_BYTES = 64 * 1024
_HEADER_BYTES = 8
_RETRY_SECONDS = 10.0
_UNREADABLE = (OSError, ValueError, RuntimeError, struct.error)

_MappedFile: Any = mmap_dict.MmapedDict  # without type annotations
_MultiProcess: Any = multiprocess.MultiProcessCollector


class MetricFile:
    """What prometheus_client uses of ``MmapedDict``: values by key. The metrics of a process call it under one lock."""

    errors: ClassVar[dict[Path, str]] = {}

    def __init__(self, filename: str) -> None:
        self._path = Path(filename)
        self._file: Any = None
        self._keys: set[str] = set()
        self._used_bytes = self._allocated_bytes = 0
        self._retry_at = 0.0

    def read_value(self, key: str) -> tuple[float, float]:
        """The value and the time stamp of a key; 0 for a new one."""
        value: tuple[float, float] = self._file.read_value(key) if self._has_space(key) else (0.0, 0.0)
        return value

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Sets the value of a key."""
        if self._has_space(key):
            self._file.write_value(key, value, timestamp)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _has_space(self, key: str) -> bool:
        if key in self._keys:
            return True
        if time.monotonic() < self._retry_at:
            return False
        try:
            while self._file is None or self._used_bytes + _entry_bytes(key) > self._allocated_bytes:
                self._open()
        except OSError as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            if not self.errors:
                log.error("served without metrics: %s: %s", self._path, error.strerror)  # noqa: TRY400  the cause is known
            self.errors[self._path] = f"{self._path}: {error.strerror}"
            return False
        self._keys.add(key)
        self._used_bytes += _entry_bytes(key)
        if self.errors.pop(self._path, None) and not self.errors:
            log.info("metrics are exported again")
        return True

    def _open(self) -> None:
        """Allocates the first space or twice the space, and maps it."""
        size = max(_INITIAL_BYTES, 2 * self._allocated_bytes)
        if self._path.exists():
            size = max(size, self._path.stat().st_size)
            _allocate(self._path, size)
        else:
            _create(self._path, size)
        file, before = _MappedFile(str(self._path)), self._file
        if before is not None:
            before.close()
        self._file, self._allocated_bytes = file, size
        self._keys = {key for key, _, _ in file.read_all_values()}
        self._used_bytes = _HEADER_BYTES + sum(map(_entry_bytes, self._keys))


def _entry_bytes(key: str) -> int:
    """Size of an entry: length, key, padding to 8 bytes, value, time stamp."""
    length = len(key.encode())
    return 4 + length + 8 - (length + 4) % 8 + 16


def _create(path: Path, size: int) -> None:
    """Creates a file of zeros as a whole: a scrape must not find a part of it."""
    unfinished = path.with_suffix(".new")
    try:
        _allocate(unfinished, size)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _allocate(path: Path, size: int) -> None:
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.write(bytes(size - file.tell()))


def count_in_files(folder: Path, name: str) -> None:
    """Makes metrics that this process creates from now on count in files of ``folder``.

    The files are named by ``name``, not by process id: the process that replaces a dead one goes on counting in its files.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    vars(values).update(MmapedDict=MetricFile)  # of which prometheus_client creates its files
    create_values: Any = values.MultiProcessValue
    values.ValueClass = create_values(lambda: name)


def metrics_error() -> str | None:
    """Why this process is served without metrics, or without some."""
    return next(iter(MetricFile.errors.values()), None)


def clear_gauges(folder: Path, name: str) -> None:
    """Removes the gauges of a dead process; its counters stay."""
    mark_dead: Any = multiprocess.mark_process_dead
    mark_dead(name, str(folder))


class _FileCollector(Collector):
    """The sums of all processes that count in ``folder``. A file that cannot be read is left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        files = [str(file) for file in self._folder.glob("*.db")]
        metrics: Iterable[Metric]
        try:
            metrics = _MultiProcess.merge(files)
        except _UNREADABLE:
            metrics = _MultiProcess.merge(list(filter(_is_readable, files)))
        return metrics


def _is_readable(file: str) -> bool:
    try:
        for _ in _MappedFile.read_all_values_from_file(file):
            pass
    except _UNREADABLE as error:
        log.warning("metrics are left out, because %s cannot be read: %s", file, error)
        return False
    return True


def multiprocess_registry(folder: Path) -> CollectorRegistry:
    """A registry that collects the sums of all processes that count in ``folder``."""
    registry = CollectorRegistry()
    registry.register(_FileCollector(folder))
    return registry
