"""The first frame of a GIF on its screen."""

from __future__ import annotations

from PIL import Image

_EXTENSION, _FRAME = 0x21, 0x2C


def first_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Left, top, width and height of the first frame (GIF89a, section 20); None if there is none."""
    position = 13 + _color_table_bytes(data[10:11])
    while data[position : position + 1] == bytes([_EXTENSION]):
        position += 2
        while position < len(data) and (length := data[position]):
            position += 1 + length
        position += 1
    block = data[position : position + 10]
    if len(block) < 10 or block[0] != _FRAME:
        return None
    left, top, width, height = (int.from_bytes(block[at : at + 2], "little") for at in (1, 3, 5, 7))
    return left, top, width, height


def _color_table_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def over_white_screen(rgb: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """``rgb`` inside ``frame`` (left, top, width, height), and white outside, where the screen is transparent."""
    left, top, width, height = frame
    if (left, top) == (0, 0) and (width, height) >= rgb.size:
        return rgb
    screen = Image.new("RGB", rgb.size, "white")
    screen.paste(rgb.crop((left, top, left + width, top + height)), (left, top))
    return screen
