"""Quality by the number of tokens of a prefix-decodable tokenizer, beside the placeholders of as many bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from models.arrays import Pixels
from models.evaluation.contact_sheet import Row
from models.evaluation.placeholders import Codec, Decoded, fit_principal_components, placeholders
from models.evaluation.progress import Track
from models.evaluation.reconstruction import CodecFigures, Reconstruction, TokenizerCodec, best_placeholder

_WIDTH, _HEIGHT, _MARGIN = 300, 240, 44  # of a panel of the plot and around its axes, in pixels
_COLORS = ("#06c", "#c60", "#393", "#939", "#888", "#c33")
_SIZE = re.compile(r"(^\d+x\d+ )|(, \d+ (components|bytes)$)")  # in the names of placeholders
_AXES: tuple[tuple[str, Callable[[CodecFigures], float]], ...] = (
    ("PSNR, dB", lambda codec: codec.psnr),
    ("perceptual distance", lambda codec: codec.perceptual_distance),
    ("class agreement, originals 1", lambda codec: codec.class_agreement_ratio),
)


class PrefixCodec(Codec):
    """The first ``length`` tokens of the codes that ``whole``, called before with the same images, has made.

    Raises ``CodeError`` for a length that the tokenizer does not decode.
    """

    def __init__(self, whole: TokenizerCodec, length: int) -> None:
        self.num_bytes = whole.tokenizer.code_format.of_length(length).num_bytes
        self.name, self.tokens = f"{whole.name}, {length} tokens", length
        self._whole = whole

    def __call__(self, images: Pixels) -> Decoded:
        """See ``Codec``."""
        ids = self._whole.ids_of(images)[:, : self.tokens]
        return Decoded(self._whole.tokenizer.decode(ids).numpy(), np.full(len(images), self.num_bytes))


def codecs_by_length(
    whole: TokenizerCodec, lengths: Sequence[int], photographs: Pixels | None, *, track: Track
) -> list[Codec]:
    """The tokenizer at each length below K, and the placeholders of as many bytes, some of them several times; PCA is
    fitted to ``photographs``, if there are any. With None no placeholders.

    Raises as :class:`PrefixCodec` and ``placeholders`` do.
    """
    found: list[Codec] = []
    for length in sorted(set(lengths) - {whole.tokens}):
        found.append(shorter := PrefixCodec(whole, length))
        if photographs is not None:
            found += placeholders(shorter.num_bytes)
            if len(photographs):
                found.append(fit_principal_components(photographs, shorter.num_bytes, track=track))
    return found


class LengthTable(NamedTuple):
    """A table's ``header`` and ``rows``, one for each length."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def by_length(figures: Reconstruction) -> list[CodecFigures]:
    """The tokenizer's figures in the order of the lengths; a single one if no other length was measured."""
    return sorted((codec for codec in figures.codecs if codec.tokens), key=lambda codec: codec.tokens or 0)


def length_table(figures: Reconstruction) -> LengthTable:
    """The tokenizer's figures by length, each beside the perceptually closest placeholder of at most as many bytes."""
    rows = []
    for codec in by_length(figures):
        best = best_placeholder(figures, codec)
        row = [str(codec.tokens), str(codec.max_bytes), *(_number(value(codec)) for _, value in _AXES)]
        if best is None:
            row += ["-"] * 3
        else:
            ratio = codec.perceptual_distance / best.perceptual_distance
            row += [best.name, _number(best.psnr), _number(ratio)]
        rows.append(row)
    header = ["tokens", "bytes", *(name for name, _ in _AXES), "best placeholder", "its PSNR", "perceptual, of its"]
    return LengthTable(header, rows)


def length_rows(figures: Reconstruction) -> tuple[list[Row], list[str]]:
    """Rows and headings of a contact sheet: original, each length, ThumbHash."""
    shown = [codec for codec in figures.codecs if codec.name == "ThumbHash"]
    shown = [*by_length(figures), *shown]
    headings = ["original", *(f"{codec.tokens or codec.name}\n{codec.max_bytes} bytes" for codec in shown)]
    columns = [figures.examples[name] for name in ("original", *(codec.name for codec in shown))]
    return [Row(images=row) for row in zip(*columns, strict=True)], headings


def plot_by_bytes(figures: Reconstruction) -> str:
    """PSNR, perceptual distance and class agreement over bytes (logarithmic) as SVG: a line for the tokenizer and for each
    kind of placeholder that needs no more bytes.
    """
    kinds: dict[str, list[CodecFigures]] = {}
    for codec in sorted(figures.codecs, key=lambda codec: codec.mean_bytes):
        if codec.tokens or codec.max_bytes <= figures.codecs[0].max_bytes:
            name = figures.codecs[0].name if codec.tokens else _SIZE.sub("", codec.name)
            kinds.setdefault(name, []).append(codec)
    colors = dict(zip(sorted(kinds, key=lambda name: name != figures.codecs[0].name), cycle(_COLORS)))
    panels = [_panel(kinds, colors, *axis, left=place * _WIDTH) for place, axis in enumerate(_AXES)]
    legend = [
        f'<text x="{_MARGIN + 110 * place}" y="{_HEIGHT - 4}" style="fill:{color}">{escape(name)}</text>'
        for place, (name, color) in enumerate(colors.items())
    ]
    width, style = _WIDTH * len(panels), "text{font:11px sans-serif;fill:#333}path{fill:none;stroke-width:1.5}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>{"".join([*panels, *legend])}</svg>\n'
    )


def _panel(
    kinds: Mapping[str, Sequence[CodecFigures]],
    colors: Mapping[str, str],
    title: str,
    value: Callable[[CodecFigures], float],
    *,
    left: int,
) -> str:
    known = {name: [codec for codec in codecs if math.isfinite(value(codec))] for name, codecs in kinds.items()}
    shown = [codec for codecs in known.values() for codec in codecs]
    if not shown:
        return ""
    sizes, values = [codec.mean_bytes for codec in shown], [value(codec) for codec in shown]

    def place(codec: CodecFigures) -> tuple[float, float]:
        across = math.log(codec.mean_bytes / min(sizes)) / (math.log(max(sizes) / min(sizes)) or 1.0)
        up = (value(codec) - min(values)) / (max(values) - min(values) or 1.0)
        return left + _MARGIN + across * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - up * (_HEIGHT - 2 * _MARGIN)

    drawn = [f'<text x="{left + _MARGIN}" y="18">{title}</text>']
    for name, codecs in known.items():
        line = " L".join("{:.1f} {:.1f}".format(*place(codec)) for codec in codecs)
        drawn += [f'<path d="M{line}" stroke="{colors[name]}"/>'] if codecs else []
        for codec in codecs:
            x, y = place(codec)
            label = escape(f"{codec.name}, {codec.mean_bytes:.0f} bytes: {value(codec):.3f}")
            drawn.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colors[name]}"><title>{label}</title></circle>'
            )
    ends = ((min(values), _HEIGHT - _MARGIN), (max(values), _MARGIN))
    drawn += [f'<text x="{left + 4}" y="{y}">{_number(end)}</text>' for end, y in ends]
    ends = ((min(sizes), _MARGIN), (max(sizes), _WIDTH - 2 * _MARGIN))
    drawn += [f'<text x="{left + x}" y="{_HEIGHT - 26}">{size:.0f} bytes</text>' for size, x in ends]
    return "".join(drawn)


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
