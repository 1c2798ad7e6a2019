"""JPEG files without the segments that hold no pixels, and the number of their scans.

Pillow parses metadata in Python and refuses a whole file for one faulty segment; libjpeg, as used by browsers, ignores
it. Segments follow ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from service.imaging.errors import UnsupportedVariant

_SEGMENT = re.compile(rb"\xff+([\x01-\xfe])")
# Markers that begin a segment or end the image; restart markers and stuffed zeros are part of a scan (B.1).
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_END, _SCAN, _COMMENT, _APPLICATION = 0xD9, 0xDA, 0xFE, range(0xE0, 0xF0)
_WITHOUT_PAYLOAD = frozenset({0x01, *range(0xD0, 0xD9)})
_NEEDED_METADATA = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 14), 0xEE: (b"Adobe", 12)}
"""Marker -> signature and shortest payload of what decides colors and orientation."""
_PROFILE, _PROFILE_SIGNATURE = 0xE2, b"ICC_PROFILE\0"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_UNSUPPORTED_FRAMES = {3: "lossless", 11: "lossless"} | dict.fromkeys((5, 6, 7, 13, 14, 15), "hierarchical")
_PROGRESSIVE = frozenset({2, 6, 10, 14})
_JPEG_LS = 0xF7


@dataclass(frozen=True)
class JpegFile:
    """``pixels``: the file with frame, tables and scans, and of its metadata what decides colors and orientation.

    ``coefficient_bytes``: memory for the coefficients of the whole image, which only files of several scans need.
    ``profile``: the ICC profile, if all its parts are there; empty if not.
    """

    pixels: bytes
    coefficient_bytes: int
    profile: bytes


def open_jpeg(data: bytes) -> JpegFile:
    """Parses the segments before the first scan.

    Raises ``UnsupportedVariant`` for a kind of JPEG that cannot be decoded, and ``EOFError`` without a scan.
    """
    kept, position, kind, frame, profile = [b"\xff\xd8"], 2, 0, b"", dict[int, bytes]()
    while (marker := _SEGMENT.search(data, position)) is not None:
        code, start = marker[1][0], marker.end()
        if code in _WITHOUT_PAYLOAD:
            position = start
            continue
        if code == _SCAN:
            kept.append(data[start - 2 :])
            is_whole = kind not in _PROGRESSIVE and data[start + 2 : start + 3] == frame[5:6]
            return JpegFile(b"".join(kept), 0 if is_whole else _coefficient_bytes(frame), _joined(profile))
        if code == _END:
            break
        position = start + int.from_bytes(data[start : start + 2])
        payload = data[start + 2 : position]
        if code == _JPEG_LS:
            raise UnsupportedVariant("JPEG-LS", "baseline or progressive JPEG")
        if code in _FRAMES:
            kind, frame = code & 0xF, payload
            _check_frame(kind, frame)
        if code == _PROFILE and payload.startswith(_PROFILE_SIGNATURE) and len(payload) >= 14:
            profile.setdefault(payload[12], payload)
        elif _is_needed(code, payload):
            kept.append(data[start - 2 : position])
    raise EOFError("it is truncated: it ends before its pixels")


def _joined(parts: Mapping[int, bytes]) -> bytes:
    """The profile of numbered segments (ICC.1, B.4)."""
    count = next(iter(parts.values()))[13] if parts else 0
    return (
        b"".join(parts[number][14:] for number in range(1, count + 1))
        if parts.keys() == {*range(1, count + 1)}
        else b""
    )


def _coefficient_bytes(frame: bytes) -> int:
    """Two bytes for each sample of all components (ITU-T T.81, A.1 and B.2.2)."""
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    factors = [(byte >> 4 or 1, byte & 0xF or 1) for byte in frame[7::3]]
    if not factors:
        return 0
    largest = max(h for h, _ in factors) * max(v for _, v in factors)
    return 2 * width * height * sum(h * v for h, v in factors) // largest


def _is_needed(code: int, payload: bytes) -> bool:
    if code in _APPLICATION:
        signature, length = _NEEDED_METADATA.get(code, (b"", 1 << 16))
        return len(payload) >= length and payload.startswith(signature)
    return code != _COMMENT


def _check_frame(kind: int, payload: bytes) -> None:
    if len(payload) < 6:
        return
    if (name := _UNSUPPORTED_FRAMES.get(kind)) is not None:
        raise UnsupportedVariant(f"{name} JPEG", "baseline or progressive JPEG")
    if payload[0] != 8:
        raise UnsupportedVariant(f"JPEG with {payload[0]}-bit samples", "JPEG with 8-bit samples")
    if payload[5] not in {1, 3, 4}:
        raise UnsupportedVariant(f"JPEG with {payload[5]} components", "gray, color or CMYK JPEG")


def has_more_scans(data: bytes, limit: int) -> bool:
    """Whether the first image of a JPEG stream has more than ``limit`` scans."""
    scans, position = 0, 2
    while scans <= limit and (marker := _MARKER.search(data, position)):
        code = marker[0][1]
        if code == _END:
            break
        scans += code == _SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans > limit
