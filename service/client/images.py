"""Reads an image source as the bytes to upload. Imports Pillow only for sources that need it."""

import hashlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard


class PillowImage(Protocol):
    """A ``PIL.Image.Image``, for type checkers without Pillow."""

    def getexif(self) -> Any: ...  # noqa: D102

    def getbands(self) -> tuple[str, ...]: ...  # noqa: D102


class PixelArray(Protocol):
    """A ``numpy.ndarray``, for type checkers without NumPy."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


class BinaryFile(Protocol):
    """A file opened for reading bytes."""

    def read(self) -> bytes: ...  # noqa: D102


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | PillowImage | PixelArray
"""A path, a file's bytes, an open binary file, a Pillow image, or pixels uint8 [H, W, 3] (or [H, W], gray)."""

_DIGEST = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
_TIFF_MODES = frozenset({"CMYK", "YCbCr"})
_CONVERTED_MODES = {"PA": "RGBA", "RGBa": "RGBA", "La": "LA", "F": "L"}
_ORIENTATION = 0x0112


def is_image(source: object) -> TypeGuard[ImageSource]:
    """Whether the source is one image, and not an iterable of images."""
    return (
        isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
        or _is_file(source)
        or _is_instance(source, "PIL.Image", "Image")
        or _is_instance(source, "numpy", "ndarray")
    )


def image_bytes(source: ImageSource) -> bytes:
    """The image file to upload: a given file unchanged, pixels as PNG (or TIFF where PNG has no such mode).

    Raises ``OSError`` if a path cannot be read, ``TypeError`` or ``ValueError`` if the source is not an image.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return Path(source).read_bytes()
    if _is_instance(source, "numpy", "ndarray"):
        return _array_bytes(source)
    if _is_instance(source, "PIL.Image", "Image"):
        return _pillow_bytes(source)
    if _is_file(source):
        return _file_bytes(source)
    raise TypeError(
        f"an image is a path, bytes, an open binary file, a Pillow image or an array of pixels, not {type(source).__name__}"
    )


def image_digest(source: ImageSource) -> str:
    """The SHA-256, in hexadecimal, of the image file to upload. A string of 64 hexadecimal digits is a digest itself (pass
    a path of that form as ``Path``).

    Raises what ``image_bytes`` raises.
    """
    if isinstance(source, str) and _DIGEST.fullmatch(source):
        return source.lower()
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(image_bytes(source)).hexdigest()


def _is_instance(source: object, module: str, name: str) -> bool:
    """``isinstance`` without importing the class's module: an instance exists only if its module is imported."""
    return module in sys.modules and isinstance(source, getattr(sys.modules[module], name))


def _is_file(source: object) -> TypeGuard[BinaryFile]:
    return hasattr(source, "read")


def _file_bytes(file: BinaryFile) -> bytes:
    data: object = file.read()
    if not isinstance(data, bytes):
        raise TypeError(f"a file must be open for reading bytes, mode 'rb': read() returned {type(data).__name__}")
    return data


def _array_bytes(array: Any) -> bytes:
    if array.dtype != "uint8" or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"pixels are uint8 [H, W, 3] or [H, W], not {array.dtype} {list(array.shape)}; several images are a list"
        )
    from PIL import Image

    return _pillow_bytes(Image.fromarray(array))


def _pillow_bytes(image: Any) -> bytes:
    options: dict[str, Any] = {}
    if (orientation := image.getexif().get(_ORIENTATION)) is not None:
        from PIL import Image

        options["exif"] = Image.Exif()
        options["exif"][_ORIENTATION] = orientation
    if image.mode not in _PNG_MODES | _TIFF_MODES:
        image = _converted(image)
    buffer = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(buffer, "PNG", compress_level=1, **options)
    else:
        image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def _converted(image: Any) -> Any:
    """An image of a mode that is not uploaded as it is, in one that is."""
    if image.mode == "LAB":  # has no conversion in Pillow
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.mode.startswith("I"):
        return image.convert("I").convert("I;16")
    return image.convert(_CONVERTED_MODES.get(image.mode, "RGB"))
