"""A split decoded once, into one file of bytes that is then mapped, not read.

::

    cache/train-<fingerprint>.images       uint8 [N, S, S, 3]
    cache/train-<fingerprint>.labels.npy   int64 [N]

A small set decodes in a minute and trains for hours, so decoding inside the loop would only cost.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from models.data.bad_samples import BadSamples
from models.data.decoding import decode_image
from models.data.sources import Sample, Source, Split
from models.errors import DataError
from models.preprocess import PREPROCESSING_VERSION

__all__ = ["Progress", "decode_to_cache"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called with the number of photographs that are done, and with how many there are."""

THREADS = min(16, os.cpu_count() or 1)


def decode_to_cache(
    source: Source,
    split: Split,
    *,
    size: int,
    cache: Path,
    bad_samples: BadSamples,
    most: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
    """Images uint8 [N, S, S, 3] and labels int64 [N] of a source, S = ``size``; None if they are more than ``most``.

    Decodes them, or maps what an earlier call decoded; of several processes one does it and the others wait. What can
    not be read is added to ``bad_samples`` and left out. Raises :class:`DataError`: more than 1 % of them, nothing left, no
    room in ``cache``.
    """
    described = [PREPROCESSING_VERSION, size, source.names, source.described()]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
    image_file = cache / f"{split}-{fingerprint}.images"
    # The labels are renamed into place last, so their presence says that both are whole.
    label_file = cache / f"{split}-{fingerprint}.labels.npy"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{split}-{fingerprint}.lock"):
        if not label_file.exists():
            total = source.count(sys.maxsize if most is None else most, bad_samples)
            if most is not None and total > most:
                return None
            _decode(source, total, size, image_file, label_file, bad_samples, progress)
    labels: NDArray[np.int64] = np.load(label_file)
    if most is not None and len(labels) > most:
        return None
    return np.memmap(image_file, dtype=np.uint8, mode="r", shape=(len(labels), size, size, 3)), labels


def _decode(
    source: Source,
    total: int,
    size: int,
    image_file: Path,
    label_file: Path,
    bad_samples: BadSamples,
    progress: Progress | None,
) -> None:
    needed = total * (size * size * 3 + 8)
    partial = image_file.with_suffix(".partial")
    labels: list[int] = []
    done = 0
    try:
        with partial.open("wb") as sink:  # what a killed call left is overwritten
            if (free := shutil.disk_usage(partial.parent).free) < needed:
                raise DataError(_no_room(partial.parent, needed, f"{free / 1e9:.1f} GB are free"))
            for done, (sample, pixels) in enumerate(_in_order(source.samples(bad_samples), size), 1):
                if isinstance(pixels, Exception):
                    bad_samples.add(sample.name, pixels)
                    # Soon, not after hours: these are too many whatever the rest is like.
                    bad_samples.check(max(total, done))
                else:
                    sink.write(pixels.data)
                    labels.append(sample.label)
                if progress is not None:
                    progress(done, total)
            bad_samples.check(len(labels) + len(bad_samples))
            if not labels:
                raise DataError(f"no photographs for {image_file.name.partition('-')[0]}")
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(image_file)
        with partial.open("wb") as sink:
            np.save(sink, np.array(labels, dtype=np.int64))
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(label_file)
    except OSError as error:  # of writing: a source raises none
        raise DataError(_no_room(partial.parent, needed, error.strerror or str(error))) from error
    finally:
        partial.unlink(missing_ok=True)
        if not label_file.exists():
            image_file.unlink(missing_ok=True)
    log.info("decoded %d photographs, left out %d", len(labels), len(bad_samples))


def _no_room(folder: Path, needed: int, reason: str) -> str:
    return f"cannot keep {needed / 1e9:.1f} GB of decoded photographs in {folder}: {reason}; name another cache folder"


def _in_order(samples: Iterator[Sample], size: int) -> Iterator[tuple[Sample, NDArray[np.uint8] | Exception]]:
    """Decodes in threads, a few photographs ahead of the one that is asked for."""
    waiting: deque[tuple[Sample, Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        try:
            for sample in samples:
                waiting.append((sample, pool.submit(_pixels, sample, size)))
                if len(waiting) > 4 * THREADS:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _pixels(sample: Sample, size: int) -> NDArray[np.uint8]:
    return decode_image(sample.read(), size)


def _result(sample: Sample, future: Future[NDArray[np.uint8]]) -> tuple[Sample, NDArray[np.uint8] | Exception]:
    try:
        return sample, future.result()
    except (OSError, ValueError) as error:
        return sample, error
