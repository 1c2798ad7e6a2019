"""Supported image formats, and which format some bytes are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from service.errors import ErrorDetail
from service.imaging.errors import ImageError, UndecodableImage, UnsupportedImageFormat

ACCEPTED_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "JPEG": "image/jpeg",
        "PNG": "image/png",
        "WEBP": "image/webp",
        "AVIF": "image/avif",
        "GIF": "image/gif",
        "BMP": "image/bmp",
        "TIFF": "image/tiff",
        **({"HEIC": "image/heic"} if find_spec("pi_heif") else {}),
    }
)
"""Format -> media type of every format that ``decode_image`` supports; HEIC needs a package of its own."""

ACCEPTED_SUFFIXES: frozenset[str] = frozenset(
    {f".{name.lower()}" for name in ACCEPTED_FORMATS} | {".jpg", ".tif", ".heif"}
)
"""File name extensions of these formats, in lower case."""

LINE_FEEDS_LOST = "a file without its line feeds, which curl -d removes: send it with --data-binary"
_LINE_FEED = re.compile(rb"[\r\n]")
_SIZE_WITH_LINE_FEEDS = 4096  # bytes

_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

_UNSUPPORTED_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"8BPS", "Photoshop (PSD)"),
    (b"icns", "Apple icon (ICNS)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DirectDraw surface (DDS)"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"gimp xcf", "GIMP (XCF)"),
    (b"%!PS", "PostScript (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"\xd7\xcd\xc6\x9a", "Windows metafile (WMF)"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"\x01\xda\x00", "SGI"),
    (b"\x01\xda\x01", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"/* XPM */", "XPM"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"SIMPLE  =", "FITS"),
    (b"\xabKTX ", "KTX texture"),
)

_NOT_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a RIFF file that is not WebP"),
)

_BASE64_IMAGES = (b"data:", b"/9j/", b"iVBORw0KGgo", b"UklGR", b"R0lGOD", b"SUkqA", b"TU0AK")

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})


def sniff(data: bytes) -> str | None:
    """The image format that the first bytes announce.

    Args:
        data: the file, or at least its first 64 bytes.

    Returns:
        A key of :data:`ACCEPTED_FORMATS`, ``HEIC``, or None for anything else.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "TIFF"
    if not {b"avif", b"avis"}.isdisjoint(_brands(data)):
        return "AVIF"
    if not _HEIF_BRANDS.isdisjoint(_brands(data)):
        return "HEIC"
    return None


def _brands(data: bytes) -> list[bytes]:
    """The major brand, then the compatible ones, of an ISO base media file; mif3 has one in place of a version."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4]), len(data), 256)
    first = 12 if data[8:12] == b"mif3" else 16
    return [data[8:12], *(data[start : start + 4] for start in range(first, end - 3, 4))]


def is_cut_off(data: bytes, format_name: str) -> bool:
    """Whether a WebP, AVIF or HEIC file is shorter than its boxes say."""
    if format_name == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    end = 0
    while format_name in {"AVIF", "HEIC"} and end < len(data) and (length := int.from_bytes(data[end : end + 4])) >= 8:
        end += length
    return end > len(data)


def _unsupported_image(data: bytes) -> str | None:
    """The name of a known image format that is not supported."""
    for signature, name in _UNSUPPORTED_IMAGES:
        if data.startswith(signature):
            return name
    if re.match(rb"P[1-7]\s", data):
        return "Netpbm (PBM, PGM, PPM)"
    if _text(data).startswith(b"<") and b"<svg" in data[:4096].lower():
        return "SVG"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[:4] == b"\x00\x00\x01\x00" and any(data[4:6]):
        return "icon (ICO)"
    if data[:4] == b"\x00\x00\x02\x00" and any(data[4:6]):
        return "cursor (CUR)"
    if _is_targa(data):
        return "TGA"
    if re.match(rb"\n[\x00\x02-\x05]\x01[\x01\x02\x04\x08]", data):
        return "PCX"
    return None


def _is_targa(data: bytes) -> bool:
    """Whether it is a TGA file, which has no signature at its start: its fields agree with each other."""
    if data[-18:-2] == b"TRUEVISION-XFILE":
        return True
    if len(data) < 18 or data[1] > 1 or data[2] not in {1, 2, 3, 9, 10, 11} or data[16] not in {8, 15, 16, 24, 32}:
        return False
    has_map = data[1] == 1
    return has_map == any(data[5:8]) and any(data[12:14]) and any(data[14:16]) and data[17] & 0xC0 == 0


def _looks_like(data: bytes) -> str:
    """What bytes that are not an image look like."""
    for signature, name in _NOT_IMAGES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return "a video"
    text = _text(data)
    if text.startswith(_BASE64_IMAGES):
        return "base64 text; send the bytes that it stands for"
    if text.lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith(b"<"):
        return "XML"
    if text.startswith((b"{", b"[")):
        return "JSON"
    if text.startswith(b"--"):
        return "a multipart form"
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return "text"
    return f"no known format (first bytes: {data[:8].hex(' ')})"


def lost_line_feeds(data: bytes) -> bool:
    """Whether a file has no line feed or carriage return, which does not happen by chance in an image of that size."""
    return len(data) >= _SIZE_WITH_LINE_FEEDS and not _LINE_FEED.search(data)


def _text(data: bytes) -> bytes:
    return data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()


def unrecognised(data: bytes, pointer: str, declared: str | None, formats: frozenset[str]) -> ImageError:
    """The error for bytes that are of none of the accepted ``formats``, saying what they look like."""
    accepted = ", ".join(media_type for name, media_type in ACCEPTED_FORMATS.items() if name in formats)
    if not data:
        detail = f"The image is empty. Send the bytes of one of: {accepted}."
        return UndecodableImage(detail, errors=[ErrorDetail(pointer=pointer, detail="empty", expected=accepted)])
    if (name := sniff(data) or _unsupported_image(data)) is not None:
        entry = ErrorDetail(pointer=pointer, detail="unsupported image format", value=name, expected=accepted)
        return UnsupportedImageFormat(
            f"{name} images are not supported. Convert to one of: {accepted}.", errors=[entry]
        )
    guess = LINE_FEEDS_LOST if lost_line_feeds(data) else _looks_like(data)
    although = f", declared as {declared[:80]}," if declared else ""
    entry = ErrorDetail(pointer=pointer, detail=f"not an image: looks like {guess}", expected=accepted)
    return UndecodableImage(
        f"The body{although} is not an image: it looks like {guess}. Expected: {accepted}.", errors=[entry]
    )
