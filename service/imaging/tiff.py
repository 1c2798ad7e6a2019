"""TIFF files as libtiff reads them, as an image class of Pillow.

Pillow reads a fixed list of sample layouts. Others are refused by name, and those that it reads differently from libtiff
are corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImagePalette
from PIL import TiffImagePlugin as Tiff

from models.preprocess import drop_xmp
from service.imaging.errors import UnsupportedVariant

_ACCEPTED = (
    "TIFF with unsigned samples of 8 bits (gray, palette, RGB, CMYK, YCbCr), of 16 bits (gray, RGB, CMYK) or of 1, 2 or "
    "4 bits (gray, palette)"
)
_SAMPLE_FORMATS = {2: "signed integer", 3: "float", 5: "complex integer", 6: "complex"}
_PHOTOMETRIC = {
    4: "a transparency mask",
    8: "CIELAB colors",
    9: "ICCLAB colors",
    10: "ITULAB colors",
    32803: "raw sensor data",
    32844: "LogL colors",
    32845: "LogLuv colors",
    34892: "linear raw data",
}
_WHITE_IS_ZERO, _GRAY_OR_PALETTE, _CMYK, _SEPARATE_PLANES = 0, frozenset({0, 1, 3}), 5, 2
_REQUIRED = frozenset({Tiff.IMAGEWIDTH, Tiff.IMAGELENGTH, Tiff.PHOTOMETRIC_INTERPRETATION, Tiff.BITSPERSAMPLE})
_YCBCR, _UNCOMPRESSED, _DEFLATE = 6, 1, 8
_UNSPECIFIED, _ALPHA = 0, 2
_ONE_ALPHA_AT_MOST = frozenset({(), (1,), (2,)})


class TiffFile(Tiff.TiffImageFile):
    """A TIFF file. Opening raises ``UnsupportedVariant`` for samples that cannot be decoded."""

    def _open(self) -> None:
        assert self.fp is not None  # noqa: S101  set by Pillow
        if self.fp.read(4) == b"MM\0+":
            raise UnsupportedVariant("big-endian BigTIFF", "little-endian BigTIFF, or TIFF")
        self.fp.seek(0)
        super()._open()

    def _setup(self) -> None:
        tags = self.tag_v2
        if (variant := _unsupported(tags)) is not None:
            raise UnsupportedVariant(variant, _ACCEPTED)
        extra = _all(tags.get(Tiff.EXTRASAMPLES, ()))
        if extra[:1] == (_UNSPECIFIED,) and tags.get(Tiff.PHOTOMETRIC_INTERPRETATION) != _CMYK:
            tags[Tiff.EXTRASAMPLES] = (_ALPHA, *extra[1:])  # as libtiff does; Pillow would ignore the sample
        if tags.get(Tiff.COMPRESSION, 1) == _UNCOMPRESSED and _needs_libtiff(tags):
            tags[Tiff.COMPRESSION] = _DEFLATE  # Pillow passes compressed files to libtiff, which reads its own tags
        try:
            super()._setup()
        except (SyntaxError, IndexError) as error:
            if not tags.keys() >= _REQUIRED or tags.keys().isdisjoint({Tiff.STRIPOFFSETS, Tiff.TILEOFFSETS}):
                raise EOFError from error
            raise UnsupportedVariant(_unusual_samples(tags), _ACCEPTED) from error
        if self.palette is not None and max(colors := tags[Tiff.COLORMAP]) < 256:
            # 16-bit entries are the standard; libtiff takes a map without a large entry as 8-bit.
            self.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _unsupported(tags: Mapping[int, Any]) -> str | None:
    """The name of a variant that cannot be decoded, or None."""
    formats = _all(tags.get(Tiff.SAMPLEFORMAT, (1,)))
    samples = tags.get(Tiff.SAMPLESPERPIXEL, 1)
    for code in formats:
        if code in _SAMPLE_FORMATS:
            return f"TIFF with {_SAMPLE_FORMATS[code]} samples"
    compression, photometric = tags.get(Tiff.COMPRESSION, 1), tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, 0)
    if compression not in Tiff.COMPRESSION_INFO:
        return f"TIFF with compression {compression}"
    if photometric in _PHOTOMETRIC:
        return f"TIFF with {_PHOTOMETRIC[photometric]}"
    bits = set(_all(tags.get(Tiff.BITSPERSAMPLE, (1,))))
    if not bits <= {1, 2, 4, 8, 16}:
        return f"TIFF with {'/'.join(map(str, sorted(bits)))}-bit samples"
    extra = _all(tags.get(Tiff.EXTRASAMPLES, ()))
    if tags.get(Tiff.PLANAR_CONFIGURATION) == _SEPARATE_PLANES and (
        extra not in _ONE_ALPHA_AT_MOST or (photometric in _GRAY_OR_PALETTE and samples > 1)
    ):
        return "TIFF with these extra samples in separate planes"
    return None


def _needs_libtiff(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow reads an uncompressed file wrongly: it takes 16-bit planes for 8-bit ones, and ignores subsampling."""
    is_ycbcr = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION) == _YCBCR
    is_subsampled = is_ycbcr and tags.get(Tiff.YCBCRSUBSAMPLING, (2, 2)) != (1, 1)
    return is_subsampled or tags.get(Tiff.PLANAR_CONFIGURATION) == _SEPARATE_PLANES


def _unusual_samples(tags: Mapping[int, Any]) -> str:
    bits = "/".join(map(str, _all(tags.get(Tiff.BITSPERSAMPLE, (1,)))))
    samples, extra = tags.get(Tiff.SAMPLESPERPIXEL, 1), len(_all(tags.get(Tiff.EXTRASAMPLES, ())))
    photometric = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, 0)
    return (
        f"TIFF with {samples} samples ({extra} of them extra) of {bits} bits, photometric interpretation {photometric},"
    )


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def load_tiff(image: TiffFile) -> Image.Image:
    """Loads the pixels, turned by EXIF alone. 16-bit gray where 0 is white is inverted; Pillow inverts other depths."""
    is_inverted = image.mode.startswith("I;16") and image.tag_v2.get(Tiff.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    drop_xmp(image)  # Pillow turns the image while it loads it
    image.load()
    if not is_inverted:
        return image
    upright = Image.fromarray(np.asarray(image) ^ 0xFFFF)
    upright.info = image.info
    return upright
