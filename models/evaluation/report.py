"""The figures as a document for programs, a table for readers, and pictures to look at."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.atomic_files import write_whole
from models.evaluation.comparison import Comparison
from models.evaluation.contact_sheet import Row, contact_sheet
from models.evaluation.generation import Generation
from models.evaluation.inception import InceptionFigures, write_npz
from models.evaluation.reconstruction import CodecFigures, Reconstruction, best_placeholder

__all__ = ["Report", "generated_sheet", "neighbours_sheet", "reconstruction_sheet", "write_images", "write_report"]

Pixels = NDArray[np.uint8]

_SAMPLES_PER_CLASS = 6
_PAIRS = 24


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was measured. ``subject`` and ``data`` say of what: names, revisions, numbers of images.

    ``class_names`` are the data's; ``originals`` uint8 [N, S, S, 3] are the validation photographs, ``training_images``
    uint8 [M, S, S, 3] those that generated images are compared with.
    """

    subject: Mapping[str, Any]
    data: Mapping[str, Any]
    reconstruction: Reconstruction
    generation: Generation | None
    published: Mapping[str, InceptionFigures]
    class_names: Sequence[str]
    originals: Pixels = field(repr=False)
    training_images: Pixels = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: images and rows are left out, and what is not a number is None."""
        document = {
            "subject": dict(self.subject),
            "data": dict(self.data),
            "reconstruction": _plain(self.reconstruction),
            "generation": _plain(self.generation),
            "published": {name: _plain(figures) for name, figures in self.published.items()},
        }
        document["reconstruction"]["best_placeholder"] = _against_placeholder(self.reconstruction)
        return document

    def to_markdown(self) -> str:
        """The tables."""
        parts = [f"# {self.subject.get('tokenizer', 'Evaluation')}", _reconstruction_table(self.reconstruction)]
        if self.generation is not None:
            parts.append(_generation_table(self.generation))
        if self.published:
            parts.append(_published_table(self.published))
        return "\n\n".join(parts) + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes ``figures.json``, ``figures.md``, ``reconstruction.png``; of a generator ``generated.png``, ``nearest.png``.

    Gives what was written.
    """
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    contents = {"figures.json": text, "figures.md": report.to_markdown()}
    sheets = {"reconstruction.png": reconstruction_sheet(report.reconstruction)}
    if report.generation is not None:
        sheets["generated.png"] = generated_sheet(report.generation, report.class_names)
        sheets["nearest.png"] = neighbours_sheet(report.generation, report.class_names, report.training_images)
    for name, content in contents.items():
        write_whole(folder / name, partial(_write_text, text=content))
    for name, sheet in sheets.items():
        write_whole(folder / name, partial(sheet.save, format="png"))
    return [folder / name for name in (*contents, *sheets)]


def write_images(report: Report, folder: Path) -> list[Path]:
    """Writes what there is of ``originals.npz``, ``reconstructions.npz`` and ``generated.npz`` for the ADM evaluator."""
    sets = {"originals": report.originals, "reconstructions": report.reconstruction.reconstructions}
    sets["generated"] = None if report.generation is None else report.generation.samples.images
    written = []
    for name, images in sets.items():
        if images is not None:
            write_npz(folder / f"{name}.npz", images)
            written.append(folder / f"{name}.npz")
    return written


def reconstruction_sheet(figures: Reconstruction) -> Image.Image:
    """The examples, one a row: the original and what every codec made of it."""
    headings = ["original"]
    headings += [f"{codec.name}\n{_bytes(codec)}\n{codec.psnr:.1f} dB" for codec in figures.codecs]
    return contact_sheet([Row(images=row) for row in zip(*figures.examples.values(), strict=True)], headings)


def generated_sheet(figures: Generation, class_names: Sequence[str]) -> Image.Image:
    """The first images of each class, a row a class."""
    labels = figures.samples.labels
    rows = [
        Row(
            images=figures.samples.images[(labels == label).numpy()][:_SAMPLES_PER_CLASS],
            label=_last(class_names[label]),
        )
        for label in torch.unique(labels).tolist()
    ]
    return contact_sheet(rows, tile=96, blocks=2 if len(rows) > _PAIRS else 1)


def neighbours_sheet(figures: Generation, class_names: Sequence[str], training_images: Pixels) -> Image.Image:
    """The generated images that are closest to a training photograph, beside it, the closest first."""
    nearest = figures.nearest
    rows = []
    for row in torch.argsort(nearest.distances)[:_PAIRS].tolist():
        label = f"{_last(class_names[int(figures.samples.labels[row])])}\ndistance {float(nearest.distances[row]):.2f}"
        pair = [figures.samples.images[row], np.array(training_images[int(nearest.rows[row])])]
        rows.append(Row(images=pair, label=label))
    return contact_sheet(rows, ["generated", "nearest training photograph"], blocks=4 if len(rows) == _PAIRS else 1)


def _reconstruction_table(figures: Reconstruction) -> str:
    header = (
        *("", "bytes", "PSNR, dB", "SSIM", "perceptual distance", "Fréchet distance", "KID x 1000"),
        *("class agreement", "of the originals'", "seams"),
    )
    rows = [
        (
            *(codec.name, _bytes(codec, unit=""), f"{codec.psnr:.2f}", f"{codec.ssim:.3f}"),
            *(
                f"{codec.perceptual_distance:.3f}",
                f"{codec.frechet_distance:.1f}",
                f"{1000 * codec.kernel_distance:.2f}",
            ),
            *(_share(codec.class_agreement), _share(codec.class_agreement_ratio), _number(codec.seams)),
        )
        for codec in figures.codecs
    ]
    lines = [
        f"## Reconstruction of {figures.images} photographs",
        _table(header, rows),
        f"Distances are on EfficientNet-Lite0 features. Class agreement: five nearest training photographs, "
        f"{figures.classes} classes, {figures.classified} photographs; of the originals themselves "
        f"{_share(figures.original_class_agreement)}.",
    ]
    against = _against_placeholder(figures)
    if against is not None:
        lines.append(
            f"The perceptual distance is {_number(against['perceptual_distance_ratio'])} of the one of the best placeholder "
            f"in as few bytes, {against['name']}."
        )
    if figures.codes is not None:
        codes = figures.codes
        lines.append(f"{codes.used} of {codes.codebook_size} codes were used, with {codes.entropy_bits:.2f} bits each.")
    return "\n\n".join(lines)


def _generation_table(figures: Generation) -> str:
    nearest = figures.nearest
    rows: list[tuple[str, Comparison | None, str]] = [
        ("Fréchet distance to training photographs", figures.frechet_distance, ".1f"),
        ("kernel distance to training photographs", figures.kernel_distance, ".5f"),
        ("asked class recovered", figures.class_agreement, ".1%"),
        ("perceptual distance of two images of a class", figures.diversity, ".3f"),
        ("distance to the nearest training photograph, median", nearest.median_distance, ".3f"),
        ("distance to the nearest training photograph, smallest", nearest.smallest_distance, ".3f"),
        ("RMSE to the nearest training photograph, smallest", nearest.smallest_rmse, ".1f"),
        ("tokens shared with it, mean", nearest.mean_shared_tokens, ".1%"),
        ("tokens shared with it, most", nearest.most_shared_tokens, ".1%"),
    ]
    table = _table(
        ("", "generated", "photographs", "ratio"),
        [
            (name, format(pair.generated, form), format(pair.real, form), _number(pair.ratio))
            for name, pair, form in rows
            if pair is not None
        ],
    )
    heading = f"## Generation of {figures.images} images of {figures.classes} classes, preset {figures.preset}"
    note = (
        f"Photographs are {figures.real_images} of the validation set. {figures.identical_pairs} pairs of images of one "
        f"class are the same. RMSE is in levels of 255."
    )
    return f"{heading}\n\n{table}\n\n{note}"


def _published_table(published: Mapping[str, InceptionFigures]) -> str:
    rows = [
        (
            *(name, f"{figures.images}", f"{figures.fid:.2f}", f"{figures.inception_score:.2f}"),
            *(f"{figures.precision:.3f}", f"{figures.recall:.3f}"),
        )
        for name, figures in published.items()
    ]
    header = ("", "images", "FID", "Inception Score", "precision", "recall")
    return f"## Published protocol (Inception features)\n\n{_table(header, rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _against_placeholder(figures: Reconstruction) -> dict[str, Any] | None:
    best = best_placeholder(figures)
    if best is None:
        return None
    ratio = figures.codecs[0].perceptual_distance / best.perceptual_distance
    return {"name": best.name, "max_bytes": best.max_bytes, "perceptual_distance_ratio": ratio}


def _plain(value: Any) -> Any:
    """Dataclasses to dictionaries without what their representation leaves out, NaN and infinity to None."""
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.repr}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bytes(codec: CodecFigures, unit: str = " bytes") -> str:
    """The number, or where images differ their mean, as ``406 (mean)``."""
    exact = codec.mean_bytes == codec.max_bytes
    return f"{codec.max_bytes}{unit}" if exact else f"{codec.mean_bytes:.0f}{unit} (mean)"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "-"


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _write_text(sink: BinaryIO, text: str) -> None:
    sink.write(text.encode())
