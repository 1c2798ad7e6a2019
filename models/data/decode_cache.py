"""Cache of decoded images: a split is decoded once into a file of raw pixels, which is then memory-mapped.

::

    cache/train-<fingerprint>.images       uint8 [P, 3], the pixels of one image after another
    cache/train-<fingerprint>.labels.npy   int64 [N, 3], label, height and width of each

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
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from models.arrays import Ids, Pixels
from models.atomic_files import write_atomically
from models.data.decoding import decode_image, decode_uncropped
from models.data.sources import BadSamples, Source, Split
from models.errors import DataError
from models.preprocessing_options import PREPROCESSING_VERSION

log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called with the number of images that are done, and the total."""

Decode = Callable[[bytes], Pixels]

# Of the files; raised when it changes.
_FORMAT = 2
# Pixels of photographs without the crop, relative to the crop's: most have sides of 4 : 3 or 3 : 2.
UNCROPPED_PIXELS = 1.5
THREADS = min(16, os.cpu_count() or 1)


def fingerprint_of(source: Source, size: int) -> str:
    """A digest of everything that determines the pixels and labels of a source at S = ``size``."""
    described = [_FORMAT, PREPROCESSING_VERSION, size, source.names, source.fingerprint()]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def decode_to_cache(
    source: Source,
    split: Split,
    *,
    size: int,
    uncropped: bool,
    cache: Path,
    bad_samples: BadSamples,
    limit: int,
    progress: Progress | None = None,
) -> tuple[Pixels, Ids] | None:
    """Pixels uint8 [P, 3] of a source's images, one after another, and a table int64 [N, 3] of label, height and width.
    None if there are more than ``limit`` images.

    They are the centre crops of S x S, S = ``size``, or ``uncropped`` with a shorter side of S. Decodes them, or maps the
    files of an earlier call. If several processes call it, one decodes and the others wait.
    Unreadable images are added to ``bad_samples`` and skipped. Raises ``DataError`` if they are more than 1 %, if no
    image is left, or if ``cache`` has no space.
    """
    stem = f"{split}-{'uncropped-' if uncropped else ''}{fingerprint_of(source, size)[:12]}"
    # The labels are written last: if they exist, both files are complete.
    image_file, label_file = cache / f"{stem}.images", cache / f"{stem}.labels.npy"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{stem}.lock"):
        if not label_file.exists():
            if len(source.labels) > limit:
                return None
            decode = partial(decode_uncropped if uncropped else decode_image, size=size)
            needed = len(source.labels) * (int(size * size * 3 * (UNCROPPED_PIXELS if uncropped else 1.0)) + 24)
            _decode(source, decode, (image_file, label_file), needed, bad_samples, progress)
    table: Ids = np.load(label_file)
    if len(table) > limit:
        return None
    return np.memmap(image_file, dtype=np.uint8, mode="r").reshape(-1, 3), table


def _decode(
    source: Source,
    decode: Decode,
    files: tuple[Path, Path],
    needed: int,
    bad_samples: BadSamples,
    progress: Progress | None,
) -> None:
    """Writes the image file, of about ``needed`` bytes, then the label file."""
    image_file, label_file = files
    total = len(source.labels)
    table: list[tuple[int, ...]] = []

    def write_images(sink: BinaryIO) -> None:
        for row, pixels in enumerate(_decode_in_order(source, decode)):
            if isinstance(pixels, Exception):
                bad_samples.add(source.name(row), pixels)
                bad_samples.check(total)  # stops early: these are too many even if all remaining images are good
            else:
                sink.write(pixels.data)
                table.append((int(source.labels[row]), *pixels.shape[:2]))
            if progress is not None:
                progress(row + 1, total)
        bad_samples.check(len(table) + len(bad_samples))
        if not table:
            raise DataError(f"no images for {image_file.name.partition('-')[0]}")

    try:
        if (free := shutil.disk_usage(image_file.parent).free) < needed:
            raise DataError(_no_space(image_file.parent, needed, f"{free / 1e9:.1f} GB are free"))
        write_atomically(image_file, write_images)
        write_atomically(label_file, lambda sink: np.save(sink, np.array(table, dtype=np.int64)))
    except OSError as error:  # from writing: sources raise none
        raise DataError(_no_space(image_file.parent, needed, error.strerror or str(error))) from error
    finally:
        if not label_file.exists():
            image_file.unlink(missing_ok=True)
    log.info("decoded %d images, skipped %d", len(table), len(bad_samples))


def _no_space(folder: Path, needed: int, reason: str) -> str:
    return f"cannot store {needed / 1e9:.1f} GB of decoded images in {folder}: {reason}; choose another cache folder"


def _decode_in_order(source: Source, decode: Decode) -> Iterator[Pixels | Exception]:
    """The images, or why they cannot be decoded. Threads work a few images ahead of the consumer."""
    waiting: deque[Future[Pixels | Exception]] = deque()
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        try:
            for row in range(len(source.labels)):
                waiting.append(pool.submit(_decode_row, source, row, decode))
                if len(waiting) > 4 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_row(source: Source, row: int, decode: Decode) -> Pixels | Exception:
    try:
        return decode(source.read(row))
    except (OSError, ValueError) as error:
        return error
