"""ICC profiles of color spaces that a file describes by numbers: CICP code points, gamma and chromaticities."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue."""

_D65, _D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
SRGB_CHROMATICITIES: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""Parameters g, a, b, c and d: y = (a x + b)^g from d on, else c x."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

# ITU-T H.273, tables 2 and 3.
_PRIMARIES: Mapping[int, Chromaticities] = {
    1: SRGB_CHROMATICITIES,
    2: SRGB_CHROMATICITIES,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_UNSPECIFIED = 2
_OTHER_CURVES: Mapping[int, tuple[float, ...]] = {
    4: (2.2, 1.0, 0.0, 0.0, 0.0),
    5: (2.8, 1.0, 0.0, 0.0, 0.0),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0913),
    8: (1.0, 1.0, 0.0, 0.0, 0.0),
    13: SRGB_CURVE,
    17: (2.6, (52.37 / 48) ** (1 / 2.6), 0.0, 0.0, 0.0),
}
# Chromium takes the curves of video for sRGB's in AVIF files, and for those of a screen (ITU-R BT.1886) in PNG files.
_CURVES = {**_OTHER_CURVES, **dict.fromkeys((1, _UNSPECIFIED, 6, 14, 15), SRGB_CURVE)}
PNG_CURVES = {**_OTHER_CURVES, **dict.fromkeys((1, 6, 11, 14, 15), (2.4, 1.0, 0.0, 0.0, 0.0))}
HDR_TRANSFERS: Mapping[int, str] = {16: "PQ", 18: "HLG"}


def cicp_profile(primaries: int, transfer: int, curves: Mapping[int, tuple[float, ...]] = _CURVES) -> bytes | None:
    """The profile of CICP code points; empty if they are sRGB's, None if they are unknown."""
    chromaticities, curve = _PRIMARIES.get(primaries), curves.get(transfer)
    if chromaticities is None or curve is None or (primaries == _UNSPECIFIED and _UNSPECIFIED not in curves):
        return None
    if (chromaticities, curve) == (SRGB_CHROMATICITIES, SRGB_CURVE):
        return b""
    return matrix_profile(chromaticities, curve)


@lru_cache(maxsize=32)
def matrix_profile(chromaticities: Chromaticities, curve: tuple[float, ...]) -> bytes | None:
    """A profile of three primaries and one curve (ICC.1:2010); None if the primaries span no space."""
    points = np.array(chromaticities).reshape(4, 2)
    if not (points[:, 1] > 0).all():
        return None
    # Rows: XYZ of white, red, green and blue with Y = 1.
    xyz = np.column_stack([points[:, 0], points[:, 1], 1 - points.sum(axis=1)]) / points[:, 1:]
    try:
        colorants = xyz[1:].T * np.linalg.solve(xyz[1:].T, xyz[0])
    except np.linalg.LinAlgError:
        return None
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ xyz[0])
    colorants = np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD @ colorants
    if not np.isfinite(colorants).all() or np.abs(colorants).max() > 100:
        return None
    tags = {
        name: b"XYZ \0\0\0\0" + _fixed(column) for name, column in zip((b"r", b"g", b"b"), colorants.T, strict=True)
    }
    return _profile(tags, b"para\0\0\0\0\0\3\0\0" + _fixed(np.array(curve)))


def _fixed(values: NDArray[np.float64]) -> bytes:
    return np.round(values.clip(-32767, 32767) * 65536).astype(">i4").tobytes()


def _profile(colorants: Mapping[bytes, bytes], curve: bytes) -> bytes:
    offset, table, body = 128 + 4 + 6 * 12, b"", b""
    for name, colorant in colorants.items():
        table += struct.pack(">4sII", name + b"XYZ", offset + len(body), len(colorant))
        body += colorant
    for name in colorants:
        table += struct.pack(">4sII", name + b"TRC", offset + len(body), len(curve))
    size = offset + len(body) + len(curve)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp").ljust(68, b"\0")
    header = (header + _fixed(_D50)).ljust(128, b"\0")
    return header + struct.pack(">I", 6) + table + body + curve
