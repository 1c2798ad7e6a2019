"""Cache of decoded images: a split is decoded once into a file of raw pixels, which is then memory-mapped.

::

    cache/train-<fingerprint>.images       uint8 [N, S, S, 3]
    cache/train-<fingerprint>.labels.npy   int64 [N]

A small dataset decodes in a minute and trains for hours: decoding in the training loop would only cost time.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from models.arrays import Ids, Pixels
from models.atomic_files import write_atomically
from models.data.decoding import decode_image
from models.data.sources import BadSamples, Source, Split
from models.errors import DataError
from models.preprocessing_options import PREPROCESSING_VERSION

log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called with the number of images that are done, and the total."""

THREADS = min(16, os.cpu_count() or 1)


def decode_to_cache(
    source: Source,
    split: Split,
    *,
    size: int,
    cache: Path,
    bad_samples: BadSamples,
    limit: int,
    progress: Progress | None = None,
) -> tuple[Pixels, Ids] | None:
    """Images uint8 [N, S, S, 3] and labels int64 [N] of a source, S = ``size``; None if there are more than ``limit``.

    Decodes them, or maps the files of an earlier call. If several processes call it, one decodes and the others wait.
    Unreadable images are added to ``bad_samples`` and skipped. Raises ``DataError`` if they are more than 1 %, if no
    image is left, or if ``cache`` has no space.
    """
    described = [PREPROCESSING_VERSION, size, source.names, source.fingerprint()]
    stem = f"{split}-{hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]}"
    # The labels are written last: if they exist, both files are complete.
    image_file, label_file = cache / f"{stem}.images", cache / f"{stem}.labels.npy"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{stem}.lock"):
        if not label_file.exists():
            if len(source.labels) > limit:
                return None
            _decode(source, size, (image_file, label_file), bad_samples, progress)
    labels: Ids = np.load(label_file)
    if len(labels) > limit:
        return None
    return np.memmap(image_file, dtype=np.uint8, mode="r", shape=(len(labels), size, size, 3)), labels


def _decode(
    source: Source, size: int, files: tuple[Path, Path], bad_samples: BadSamples, progress: Progress | None
) -> None:
    """Writes the image file, then the label file."""
    image_file, label_file = files
    total = len(source.labels)
    needed = total * (size * size * 3 + 8)
    labels: list[int] = []

    def write_images(sink: BinaryIO) -> None:
        for row, pixels in enumerate(_decode_in_order(source, size)):
            if isinstance(pixels, Exception):
                bad_samples.add(source.name(row), pixels)
                bad_samples.check(total)  # stops early: these are too many even if all remaining images are good
            else:
                sink.write(pixels.data)
                labels.append(int(source.labels[row]))
            if progress is not None:
                progress(row + 1, total)
        bad_samples.check(len(labels) + len(bad_samples))
        if not labels:
            raise DataError(f"no images for {image_file.name.partition('-')[0]}")

    try:
        if (free := shutil.disk_usage(image_file.parent).free) < needed:
            raise DataError(_no_space(image_file.parent, needed, f"{free / 1e9:.1f} GB are free"))
        write_atomically(image_file, write_images)
        write_atomically(label_file, lambda sink: np.save(sink, np.array(labels, dtype=np.int64)))
    except OSError as error:  # from writing: sources raise none
        raise DataError(_no_space(image_file.parent, needed, error.strerror or str(error))) from error
    finally:
        if not label_file.exists():
            image_file.unlink(missing_ok=True)
    log.info("decoded %d images, skipped %d", len(labels), len(bad_samples))


def _no_space(folder: Path, needed: int, reason: str) -> str:
    return f"cannot store {needed / 1e9:.1f} GB of decoded images in {folder}: {reason}; choose another cache folder"


def _decode_in_order(source: Source, size: int) -> Iterator[Pixels | Exception]:
    """The images, or why they cannot be decoded. Threads work a few images ahead of the consumer."""
    waiting: deque[Future[Pixels | Exception]] = deque()
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        try:
            for row in range(len(source.labels)):
                waiting.append(pool.submit(_decode_row, source, row, size))
                if len(waiting) > 4 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_row(source: Source, row: int, size: int) -> Pixels | Exception:
    try:
        return decode_image(source.read(row), size)
    except (OSError, ValueError) as error:
        return error
