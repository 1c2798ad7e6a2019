"""Contact sheets: labelled rows of images in one picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from models.arrays import Pixels

_TEXT, _BACKGROUND = (20, 20, 20), (255, 255, 255)
_FONT_SIZE, _CHARACTER_WIDTH = 13, 6.4
_GAP, _MARGIN = 6, 12
_LABEL_WIDTH = 140


@dataclass(frozen=True, kw_only=True)
class Row:
    """``images`` uint8 [S, S, 3] each, and a ``label`` to their left."""

    images: Sequence[Pixels]
    label: str = ""


def contact_sheet(
    rows: Sequence[Row], headings: Sequence[str] = (), *, tile: int = 128, blocks: int = 1
) -> Image.Image:
    """Draws the rows with images scaled to ``tile`` pixels, under a heading for each column, in ``blocks`` side by side.

    Headings and labels are wrapped to the width of their column.
    """
    per_block = -(-len(rows) // blocks)
    drawn = [_draw_block(rows[start : start + per_block], headings, tile) for start in range(0, len(rows), per_block)]
    width = sum(block.width + 2 * _MARGIN for block in drawn)
    sheet = Image.new("RGB", (width, max(block.height for block in drawn) + 2 * _MARGIN), _BACKGROUND)
    left = _MARGIN
    for block in drawn:
        sheet.paste(block, (left, _MARGIN))
        left += block.width + 2 * _MARGIN
    return sheet


def _draw_block(rows: Sequence[Row], headings: Sequence[str], tile: int) -> Image.Image:
    font = ImageFont.load_default(_FONT_SIZE)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels, titles = [_wrap(row.label, _LABEL_WIDTH) for row in rows], [_wrap(text, tile) for text in headings]
    indent = max(round(measure.multiline_textbbox((0, 0), text, font)[2]) for text in labels)
    indent += _GAP if indent else 0
    head = max((round(measure.multiline_textbbox((0, 0), text, font)[3]) + _GAP for text in titles), default=0)
    columns = max(len(row.images) for row in rows)
    size = indent + columns * (tile + _GAP) - _GAP, head + len(rows) * (tile + _GAP) - _GAP
    block = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(block)
    for column, text in enumerate(titles):
        draw.multiline_text((indent + column * (tile + _GAP), 0), text, _TEXT, font)
    for number, (row, text) in enumerate(zip(rows, labels, strict=True)):
        top = head + number * (tile + _GAP)
        draw.multiline_text((0, top + tile // 2), text, _TEXT, font, anchor="lm")
        for column, pixels in enumerate(row.images):
            image = Image.fromarray(pixels)
            if image.width != tile:
                image = image.resize((tile, tile), Image.Resampling.LANCZOS)
            block.paste(image, (indent + column * (tile + _GAP), top))
    return block


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, int(width / _CHARACTER_WIDTH)) for line in text.split("\n"))
