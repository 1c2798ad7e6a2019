"""Images and statistics in ``.npz`` files, as the ADM evaluator reads and publishes them.

::

    arr_0      uint8 [N, H, W, 3]     images
    mu, sigma  float [C], [C, C]      mean and covariance of Inception's pooled features of all reference images

(openai/guided-diffusion, ``evaluations/evaluator.py``.) Images are read in batches, headers before contents, and never
pickled objects.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Pixels
from models.atomic_files import write_atomically
from models.errors import DataError
from models.evaluation.distributions import Gaussian
from models.evaluation.features import BATCH_SIZE

_IMAGES, _MEAN, _COVARIANCE = "arr_0", "mu", "sigma"
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def write_npz(path: Path, images: Pixels) -> None:
    """Writes uint8 [N, S, S, 3], which may be mapped from a file, as ``arr_0``."""
    write_atomically(path, lambda sink: np.savez(sink, images))


def has_images(path: Path) -> bool:
    """Whether a file has images. Raises ``DataError`` if it has neither images nor statistics, or other arrays."""
    with _opened(path) as archive:
        names = set(archive.namelist())
        if f"{_IMAGES}.npy" in names:
            with archive.open(f"{_IMAGES}.npy") as stream:
                _image_shape(stream)
            return True
        if not {f"{_MEAN}.npy", f"{_COVARIANCE}.npy"} <= names:
            raise ValueError(f"it has neither images, {_IMAGES}, nor statistics, {_MEAN} and {_COVARIANCE}")
    return False


def read_images(path: Path) -> Iterator[Pixels]:
    """The images in batches uint8 [B, H, W, 3]. Raises ``DataError``."""
    with _opened(path) as archive, archive.open(f"{_IMAGES}.npy") as stream:
        count, *shape = _image_shape(stream)
        for start in range(0, count, BATCH_SIZE):
            rows = min(BATCH_SIZE, count - start)
            content = bytearray(stream.read(rows * int(np.prod(shape))))  # writable, as torch needs it
            yield np.frombuffer(content, np.uint8).reshape(rows, *shape)


def read_statistics(path: Path, columns: int) -> Gaussian | None:
    """The distribution of C = ``columns`` features that a file has, None if it has images alone. Raises ``DataError``."""
    with _opened(path) as archive:
        if f"{_MEAN}.npy" not in archive.namelist():
            return None
        mean = _read_floats(archive, _MEAN, (columns,))
        return Gaussian.of(mean, _read_floats(archive, _COVARIANCE, (columns, columns)))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; errors of reading become ``DataError``."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot use {path} as .npz: {error}") from error


def _image_shape(stream: IO[bytes]) -> tuple[int, ...]:
    shape, is_fortran, dtype = _header(stream)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or is_fortran or 0 in shape:
        raise ValueError(f"{_IMAGES} is {dtype} {list(shape)}, expected uint8 [N, H, W, 3]")
    return shape


def _read_floats(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    with archive.open(f"{name}.npy") as stream:
        found, _, dtype = _header(stream)
    if dtype.kind != "f" or found != shape:
        raise ValueError(f"{name} is {dtype} {list(found)}, expected float {list(shape)} for this feature network")
    with archive.open(f"{name}.npy") as stream:
        values = np.lib.format.read_array(stream, allow_pickle=False).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite")
    return values


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of .npy is unknown")
    return _HEADERS[version](stream)
