"""What a caller may call an image, as the bytes that go out. Pillow and NumPy are imported by those who use them."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

__all__ = ["ImageSource", "image_bytes", "image_digest", "is_image"]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]"
"""A path, a file's bytes, a Pillow image, or pixels uint8 [H, W, 3] (or [H, W], gray)."""

_DIGEST = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})
_ORIENTATION = 0x0112


def is_image(source: object) -> TypeGuard[ImageSource]:
    """Whether this is one image, and not several of them."""
    return (
        isinstance(source, str | os.PathLike | bytes | bytearray | memoryview)
        or _is_pillow(source)
        or _is_array(source)
    )


def image_bytes(source: ImageSource) -> bytes:
    """An image file that holds exactly what the source does; pixels become PNG.

    Raises ``OSError`` where a path cannot be read, ``TypeError`` or ``ValueError`` for what is no image.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return Path(source).read_bytes()
    if _is_array(source):
        return _array_bytes(source)
    if _is_pillow(source):
        return _pillow_bytes(source)
    raise TypeError(f"an image is a path, bytes, a Pillow image or an array of pixels, not {type(source).__name__}")


def image_digest(source: ImageSource) -> str:
    """The SHA-256, in hexadecimal, of the file that goes out for this image. A string that is such a digest is taken for
    one, and a path of that form has to be a ``Path``.

    Raises what ``image_bytes`` raises.
    """
    if isinstance(source, str) and _DIGEST.fullmatch(source):
        return source.lower()
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(image_bytes(source)).hexdigest()


def _is_pillow(source: object) -> bool:
    # Whoever holds such an image has imported its class; nobody else shall.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


def _is_array(source: object) -> bool:
    module = sys.modules.get("numpy")
    return module is not None and isinstance(source, module.ndarray)


def _array_bytes(array: Any) -> bytes:
    if array.dtype != "uint8" or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"pixels are uint8 [H, W, 3] or [H, W], not {array.dtype} {list(array.shape)}; several images are a list"
        )
    from PIL import Image

    return _pillow_bytes(Image.fromarray(array))


def _pillow_bytes(image: Any) -> bytes:
    orientation = image.getexif().get(_ORIENTATION)
    options: dict[str, Any] = {}
    if orientation is not None:
        from PIL import Image

        options["exif"] = Image.Exif()
        options["exif"][_ORIENTATION] = orientation
    buffer = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(buffer, "PNG", compress_level=1, **options)
    else:
        image.save(buffer, "TIFF", **options)
    return buffer.getvalue()
