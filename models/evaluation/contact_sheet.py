"""Images side by side in one picture, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Row", "contact_sheet"]

Pixels = NDArray[np.uint8]

_TEXT, _PALE, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)
_FONT_SIZE, _LINE = 13, 17
_GAP, _MARGIN = 6, 12
_LABEL_WIDTH = 140

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Line = tuple[str, tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """``images`` uint8 [S, S, 3] each, and what is written to their left; what follows a line break is paler."""

    images: Sequence[Pixels]
    label: str = ""


def contact_sheet(
    rows: Sequence[Row], headings: Sequence[str] = (), *, tile: int = 128, blocks: int = 1
) -> Image.Image:
    """All rows, images scaled to ``tile`` pixels, under ``headings`` by column; in ``blocks`` of rows side by side.

    A heading too wide for its column goes over several lines; what follows a line break is paler.
    """
    per_block = -(-len(rows) // blocks)
    parts = [rows[start : start + per_block] for start in range(0, len(rows), per_block)]
    drawn = [_block(part, headings, tile) for part in parts]
    sheet = Image.new(
        "RGB",
        (sum(image.width for image in drawn) + 2 * _MARGIN * len(drawn), max(i.height for i in drawn) + 2 * _MARGIN),
        _PAPER,
    )
    left = _MARGIN
    for image in drawn:
        sheet.paste(image, (left, _MARGIN))
        left += image.width + 2 * _MARGIN
    return sheet


def _block(rows: Sequence[Row], headings: Sequence[str], tile: int) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    labels = [_wrapped(row.label.split("\n"), _LABEL_WIDTH, font) for row in rows]
    indent = max(round(font.getlength(text)) for lines in labels for text, _ in lines)
    indent += _GAP if indent else 0
    titles = [_wrapped(heading.split("\n"), tile, font) for heading in headings]
    head = _LINE * max(map(len, titles), default=0) + (_GAP if headings else 0)
    columns = max(len(row.images) for row in rows)
    sheet = Image.new("RGB", (indent + columns * (tile + _GAP) - _GAP, head + len(rows) * (tile + _GAP) - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(titles):
        _write(draw, (indent + column * (tile + _GAP), 0), lines, font)
    for number, (row, lines) in enumerate(zip(rows, labels, strict=True)):
        top = head + number * (tile + _GAP)
        _write(draw, (0, top + (tile - _LINE * len(lines)) // 2), lines, font)
        for column, pixels in enumerate(row.images):
            image = Image.fromarray(pixels)
            if image.width != tile:
                image = image.resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(image, (indent + column * (tile + _GAP), top))
    return sheet


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: Sequence[_Line],
    font: _Font,
) -> None:
    for number, (text, colour) in enumerate(lines):
        draw.text((place[0], place[1] + number * _LINE), text, colour, font)


def _wrapped(given: Sequence[str], width: int, font: _Font) -> list[_Line]:
    """Lines of whole words that fit; all but the first of those given are pale."""
    lines: list[_Line] = []
    for number, text in enumerate(given):
        colour, line = _PALE if number else _TEXT, ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append((line, colour))
                longer = word
            line = longer
        lines.append((line, colour))
    return lines
