"""Conversion of colors to sRGB by the profile that an image file contains.

Relative colorimetric, by LittleCMS. As in browsers, a profile counts if it is of the image's own kind (gray, RGB, CMYK), and
a broken one counts as none.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from service.imaging.errors import UnsupportedVariant
from service.imaging.icc import (
    HDR_TRANSFERS,
    PNG_CURVES,
    SRGB_CHROMATICITIES,
    Chromaticities,
    cicp_profile,
    matrix_profile,
)

_log = logging.getLogger(__name__)

_LEAST_SCALE = 3
_MAX_PROFILE_BYTES = 4 << 20
_SAME_COLOR = 2
"""Largest difference of a channel from sRGB's at which a profile counts as sRGB: among the variants of sRGB it is 1 or 2."""

_RGB_OF_FULL_RANGE = b"\0\1"
_EMBEDDED, _HEADER_5_BYTES = b"DEBM", 124
"""Color space of a BMP file with a header of version 5 that contains a profile, and the size of this header."""
_RENDERING_INTENTS = frozenset({b"\0", b"\1", b"\2", b"\3"})
_PROFILE_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}


def profile_of(image: Image.Image, data: bytes, png_chunks: Mapping[bytes, bytes]) -> bytes | None:
    """The ICC profile of an opened image file; None if there is none, and if it is known to be sRGB without a look into it.

    Raises ``UnsupportedVariant`` for high dynamic range, which a profile cannot describe.
    """
    if image.format == "PNG":
        return _png_profile(png_chunks)
    if image.format in {"AVIF", "HEIF"} and (box := re.search(rb"colrnclx(.{4})", data[: 1 << 16], re.DOTALL)):
        primaries, transfer = struct.unpack(">HH", box[1])
        _refuse_hdr(transfer, image.format)
        return image.info.get("icc_profile") or cicp_profile(primaries, transfer) or None
    if image.format == "BMP" and data[70:74] == _EMBEDDED and len(data) >= 138 and data[14] == _HEADER_5_BYTES:
        offset, size = struct.unpack_from("<II", data, 126)
        return data[14 + offset : 14 + offset + size]
    return image.info.get("icc_profile") or None


def _png_profile(chunks: Mapping[bytes, bytes]) -> bytes | None:
    """The first of cICP, iCCP, sRGB, and gAMA with cHRM (PNG, third edition, section 4.3) that is valid."""
    if len(cicp := chunks.get(b"cICP", b"")) == 4 and cicp[2:] == _RGB_OF_FULL_RANGE:
        _refuse_hdr(cicp[1], "PNG")
        if (profile := cicp_profile(cicp[0], cicp[1], PNG_CURVES)) is not None:
            return profile or None
    name, _, compressed = chunks.get(b"iCCP", b"").partition(b"\0")
    if 0 < len(name) < 80 and (profile := _decompressed(compressed)) is not None:
        return profile
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")) if len(chunks.get(b"gAMA", b"")) == 4 else 0
    if chunks.get(b"sRGB") in _RENDERING_INTENTS or not gamma:
        return None
    chromaticities, curve = SRGB_CHROMATICITIES, (100_000 / gamma, 1.0, 0.0, 0.0, 0.0)
    if len(points := chunks.get(b"cHRM", b"")) == 32:
        values = tuple(value / 100_000 for value in struct.unpack(">8I", points))
        if np.abs(np.subtract(values, SRGB_CHROMATICITIES)).max() > 0.002:
            chromaticities = _eight(values)
    if chromaticities == SRGB_CHROMATICITIES and abs(curve[0] - 2.2) < 0.1:  # what encoders of sRGB write (11.3.2.2)
        return None
    return matrix_profile(chromaticities, curve)


def _eight(values: tuple[float, ...]) -> Chromaticities:
    a, b, c, d, e, f, g, h = values
    return a, b, c, d, e, f, g, h


def _refuse_hdr(transfer: int, format_name: str) -> None:
    if transfer in HDR_TRANSFERS:
        raise UnsupportedVariant(
            f"{format_name} with high dynamic range ({HDR_TRANSFERS[transfer]})", "an image of standard dynamic range"
        )


def _decompressed(compressed: bytes) -> bytes | None:
    """The profile of an iCCP chunk after its name; None if it is broken or too large."""
    if compressed[:1] != b"\0":
        return None
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(compressed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if stream.eof else None


def to_srgb(image: Image.Image, profile: bytes, size: int | None) -> Image.Image:
    """A loaded image with its colors converted: mode RGB, or RGBA if it has transparency. Its EXIF stays.

    Conversion costs more than decoding, so an opaque image is reduced first (box filter, whole factors) while its shorter
    side stays at least three times ``size``, that of the crop. Returns ``image`` if the profile is sRGB's, broken, or of
    another kind than the image.
    """
    mode = "CMYK" if image.mode == "CMYK" else "L" if image.mode in {"1", "L", "LA", "La", "I;16", "I;16B"} else "RGB"
    transform = _transform(profile, mode)
    if transform is None and mode == "L":
        mode, transform = "RGB", _transform(profile, "RGB")
    if transform is None:
        return image
    colors, alpha = _split_alpha(image)
    if colors.mode != mode:
        colors = colors.convert(mode)
    if size is not None and alpha is None and (factor := min(colors.size) // (_LEAST_SCALE * size)) > 1:
        colors = colors.reduce(factor)
    converted = ImageCms.applyTransform(colors, transform)
    assert converted is not None  # noqa: S101  it is None for in-place conversion only
    if alpha is not None:
        converted.putalpha(alpha)
    converted.info = {"exif": image.info["exif"]} if "exif" in image.info else {}
    return converted


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        alpha = values != image.info["transparency"] if isinstance(image.info.get("transparency"), int) else None
        gray = Image.fromarray((values >> 8).astype(np.uint8))
        return gray, None if alpha is None else Image.fromarray(alpha.astype(np.uint8) * 255)
    if not image.has_transparency_data:
        return image, None
    key = image.info.get("transparency")
    if image.mode == "RGB" and not (isinstance(key, tuple) and max(key) <= 255):
        return image, None  # of a 16-bit file; see models.preprocess
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), rgba.getchannel("A")


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from ``mode`` to RGB; None if the profile is sRGB's, broken, or of another kind."""
    if len(profile) > _MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _PROFILE_MODES.get(source.profile.xcolor_space) != mode:
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
        return None if mode != "CMYK" and _is_identity(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _log.debug("color profile ignored: %s", error)
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 18, 3)
    probe = Image.fromarray(grid).convert(mode)
    converted = ImageCms.applyTransform(probe, transform)
    return bool(
        np.abs(np.asarray(converted, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max() <= _SAME_COLOR
    )
