"""BMP files whose pixels are bit fields of any layout, as an image class of Pillow, and run lengths that end early.

Pillow reads the usual layouts only, ignores 16-bit alpha, and refuses an image whose last pixels are skipped. The format
is described at https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapv5header.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpRleDecoder

_NONE, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 3, 6
_END_OF_BITMAP = b"\0\1"
_USUAL_MASKS = (0xFF0000, 0xFF00, 0xFF)
_DECODER = "titok_bmp_bit_fields"


def has_bit_fields(data: bytes) -> bool:
    """Whether 16- or 32-bit pixels are stored as bit fields, with masks in the header (uncompressed: of alpha only)."""
    if len(data) < 70:
        return False
    header, bits, compression, alpha = (int(part) for part in struct.unpack_from("<I10xHI32xI", data, 14))
    has_masks = compression in {_BIT_FIELDS, _ALPHA_BIT_FIELDS} or (
        compression == _NONE and header >= 108 and alpha > 0
    )
    return header >= 40 and has_masks and (bits == 32 or (bits == 16 and compression != _NONE))


class BitFieldsFile(ImageFile.ImageFile):
    """A BMP file of bit fields; mode RGBA."""

    format = "BMP"

    def _open(self) -> None:
        assert self.fp is not None  # noqa: S101  set by Pillow
        header = self.fp.read(70)
        offset, header_bytes, width, height = struct.unpack_from("<IIii", header, 10)
        bits, compression = struct.unpack_from("<HI", header, 28)
        *masks, alpha = struct.unpack_from("<IIII", header, 54)
        has_alpha = header_bytes >= 56 or compression == _ALPHA_BIT_FIELDS
        if width <= 0 or height == 0:
            raise SyntaxError(f"its header has {width} x {height} pixels")
        self._mode, self._size = "RGBA", (width, abs(height))
        fields = (bits, height < 0, *(_USUAL_MASKS if compression == _NONE else masks), alpha if has_alpha else 0)
        self.tile = [ImageFile._Tile(_DECODER, (0, 0, *self._size), offset, fields)]


class _Decoder(ImageFile.PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: object) -> tuple[int, int]:  # noqa: ARG002  Pillow's signature; the file is read instead
        assert self.fd is not None  # noqa: S101  set by Pillow
        bits, is_top_down, *masks = self.args
        width, height = self.state.xsize, self.state.ysize
        stride = (width * bits + 31) // 32 * 4
        rows = self.fd.read(stride * height)
        if len(rows) < stride * (height - 1) + width * bits // 8:
            raise EOFError("image file is truncated")
        values = np.frombuffer(rows.ljust(stride * height, b"\0"), f"<u{bits // 8}").reshape(height, -1)[:, :width]
        pixels = np.full((height, width, 4), 255, np.uint8)
        for channel, mask in enumerate(masks):
            if mask or channel < 3:
                pixels[:, :, channel] = _field(values, mask)
        self.set_as_raw((pixels if is_top_down else pixels[::-1]).tobytes(), "RGBA")
        return -1, 0


def _field(values: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """The bits of ``mask``, scaled to 0..255: through a table of at most 256 entries, since more bits do not count."""
    if mask == 0:
        return np.zeros(values.shape, np.uint8)
    low = (mask & -mask).bit_length() - 1
    width = mask.bit_length() - low
    shift, levels = low + max(width - 8, 0), 1 << min(width, 8)
    table: NDArray[np.uint8] = (np.arange(levels) * 255 // (levels - 1)).astype(np.uint8)
    return np.take(table, (values & np.array(mask, values.dtype)) >> shift)


class _RunLengths(BmpRleDecoder):
    """Pixels that the run lengths leave out are those of the first color."""

    def set_as_raw(self, data: bytes | bytearray, rawmode: str | None = None, extra: tuple[Any, ...] = ()) -> None:
        assert self.fd is not None  # noqa: S101  set by Pillow
        self.fd.seek(-len(_END_OF_BITMAP), os.SEEK_CUR)
        if self.fd.read(len(_END_OF_BITMAP)) == _END_OF_BITMAP:
            data = data.ljust(self.state.xsize * self.state.ysize, b"\0")
        super().set_as_raw(data, rawmode, extra)


Image.register_decoder(_DECODER, _Decoder)
Image.register_decoder("bmp_rle", _RunLengths)
