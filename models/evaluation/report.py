"""The report of an evaluation: JSON, Markdown tables and contact sheets."""

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from models.arrays import Pixels
from models.atomic_files import write_atomically
from models.evaluation.contact_sheet import Row, contact_sheet
from models.evaluation.generation import Comparison, Generation, NearestPhotographs, Samples
from models.evaluation.lengths import by_length, length_rows, length_table, plot_by_bytes
from models.evaluation.npz_files import write_npz
from models.evaluation.published import InceptionFigures
from models.evaluation.reconstruction import CodecFigures, Reconstruction, best_placeholder

_SAMPLES_PER_CLASS, _CLASSES = 6, 100
_PAIRS = 24


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results. ``subject`` and ``data`` describe what was measured: names, revisions, numbers of images.

    ``class_names`` are the data's, or without data the generator's; ``originals`` uint8 [N, S, S, 3] are the validation
    images, ``training_images`` uint8 [M, S, S, 3] those that generated images, ``samples``, are compared with.
    """

    subject: Mapping[str, Any]
    data: Mapping[str, Any]
    reconstruction: Reconstruction | None
    generation: Generation | None
    published: Mapping[str, InceptionFigures]
    class_names: Sequence[str]
    originals: Pixels | None = field(repr=False)
    training_images: Pixels | None = field(repr=False)
    samples: Samples | None = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without images and rows; NaN and infinity become None."""
        document = {
            "subject": dict(self.subject),
            "data": dict(self.data),
            "reconstruction": plain(self.reconstruction),
            "generation": plain(self.generation),
            "published": {name: plain(figures) for name, figures in self.published.items()},
        }
        if self.reconstruction is not None:
            document["reconstruction"]["best_placeholder"] = _against_placeholder(self.reconstruction)
        return document

    def to_markdown(self) -> str:
        """The tables in Markdown."""
        parts = [f"# {self.subject.get('tokenizer', 'Evaluation')}"]
        if self.reconstruction is not None:
            parts.append(_reconstruction_table(self.reconstruction))
            if len(by_length(self.reconstruction)) > 1:
                parts.append(f"## By length\n\n{_table(*length_table(self.reconstruction))}")
        if self.generation is not None:
            parts.append(_generation_table(self.generation))
        if self.published:
            parts.append(published_table(self.published))
        return "\n\n".join(parts) + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes ``figures.json``, ``figures.md``, and of what was measured ``reconstruction.png``, ``lengths.svg``,
    ``generated.png`` and ``nearest.png``. Returns the files.
    """
    text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
    contents = {"figures.json": text.encode(), "figures.md": report.to_markdown().encode()}
    if report.reconstruction is not None:
        contents["reconstruction.png"] = _png(reconstruction_sheet(report.reconstruction))
        if len(by_length(report.reconstruction)) > 1:
            contents["lengths.svg"] = plot_by_bytes(report.reconstruction).encode()
    if report.samples is not None:
        contents["generated.png"] = _png(generated_sheet(report.samples, report.class_names))
        if report.generation is not None and report.training_images is not None:
            nearest = report.generation.nearest
            sheet = neighbours_sheet(report.samples, nearest, report.class_names, report.training_images)
            contents["nearest.png"] = _png(sheet)
    return [_write(folder / name, content) for name, content in contents.items()]


def write_images(report: Report, folder: Path) -> list[Path]:
    """Writes ``originals.npz``, ``reconstructions.npz`` and ``generated.npz``, if available, for the ADM evaluator."""
    sets = {"originals": report.originals}
    sets["reconstructions"] = None if report.reconstruction is None else report.reconstruction.reconstructions
    sets["generated"] = None if report.samples is None else report.samples.images
    written = []
    for name, images in sets.items():
        if images is not None:
            write_npz(folder / f"{name}.npz", images)
            written.append(folder / f"{name}.npz")
    return written


def reconstruction_sheet(figures: Reconstruction) -> Image.Image:
    """A row for each example: the original and the reconstruction of every codec; by length, if lengths were measured."""
    if len(by_length(figures)) > 1:
        return contact_sheet(*length_rows(figures))
    headings = ["original"]
    headings += [f"{codec.name}\n{_bytes(codec)}\n{codec.psnr:.1f} dB" for codec in figures.codecs]
    return contact_sheet([Row(images=row) for row in zip(*figures.examples.values(), strict=True)], headings)


def generated_sheet(samples: Samples, class_names: Sequence[str]) -> Image.Image:
    """A row for each of the first classes: its first images."""
    rows = [
        Row(
            images=samples.images[torch.nonzero(samples.labels == label)[:_SAMPLES_PER_CLASS, 0].numpy()],
            label=_last(class_names[label]),
        )
        for label in torch.unique(samples.labels).tolist()[:_CLASSES]
    ]
    return contact_sheet(rows, tile=96, blocks=2 if len(rows) > _PAIRS else 1)


def neighbours_sheet(
    samples: Samples, nearest: NearestPhotographs, class_names: Sequence[str], training_images: Pixels
) -> Image.Image:
    """The generated images that are closest to a training image, beside it, the closest first."""
    rows = []
    for row in torch.argsort(nearest.distances)[:_PAIRS].tolist():
        label = f"{_last(class_names[int(samples.labels[row])])}\ndistance {float(nearest.distances[row]):.2f}"
        pair = [samples.images[row], np.array(training_images[int(nearest.rows[row])])]
        rows.append(Row(images=pair, label=label))
    return contact_sheet(rows, ["generated", "nearest training image"], blocks=4 if len(rows) == _PAIRS else 1)


def _reconstruction_table(figures: Reconstruction) -> str:
    header = ["", "bytes", "PSNR, dB", "SSIM", "perceptual distance", "Fréchet distance", "KID x 1000"]
    header += ["class agreement", "of the originals'", "seams"]
    rows = []
    for codec in figures.codecs:
        row = [codec.name, _bytes(codec, unit=""), f"{codec.psnr:.2f}", f"{codec.ssim:.3f}"]
        row += [
            f"{codec.perceptual_distance:.3f}",
            f"{codec.frechet_distance:.1f}",
            f"{1000 * codec.kernel_distance:.2f}",
        ]
        row += [_share(codec.class_agreement), _share(codec.class_agreement_ratio), _number(codec.seams)]
        rows.append(row)
    parts = [
        f"## Reconstruction of {figures.images} images",
        _table(header, rows),
        "Distances are on EfficientNet-Lite0 features.",
    ]
    if figures.classes:
        parts[-1] += (
            f" Class agreement: five nearest training images, {figures.classes} classes, {figures.classified} images; of "
            f"the originals {_share(figures.original_class_agreement)}."
        )
    if (best := _against_placeholder(figures)) is not None:
        parts.append(
            f"The perceptual distance is {_number(best['perceptual_distance_ratio'])} of that of the best placeholder "
            f"of at most as many bytes, {best['name']}."
        )
    if (codes := figures.codes) is not None:
        parts.append(f"{codes.used} of {codes.codebook_size} codes were used, with {codes.entropy_bits:.2f} bits each.")
    return "\n\n".join(parts)


def _generation_table(figures: Generation) -> str:
    nearest = figures.nearest
    metrics: list[tuple[str, Comparison | None, str]] = [
        ("Fréchet distance to training images", figures.frechet_distance, ".1f"),
        ("kernel distance to training images", figures.kernel_distance, ".5f"),
        ("requested class recognised", figures.class_agreement, ".1%"),
        ("perceptual distance of two images of a class", figures.diversity, ".3f"),
        ("distance to the nearest training image, median", nearest.median_distance, ".3f"),
        ("distance to the nearest training image, smallest", nearest.smallest_distance, ".3f"),
        ("RMSE to the nearest training image, smallest", nearest.smallest_rmse, ".1f"),
        ("tokens shared with it, mean", nearest.mean_shared_tokens, ".1%"),
        ("tokens shared with it, most", nearest.most_shared_tokens, ".1%"),
    ]
    rows = [
        (name, format(pair.generated, form), format(pair.real, form), _number(pair.ratio))
        for name, pair, form in metrics
        if pair is not None
    ]
    return (
        f"## Generation of {figures.images} images of {figures.classes} classes, preset {figures.preset}\n\n"
        f"{_table(('', 'generated', 'real', 'ratio'), rows)}\n\n"
        f"Real images are {figures.real_images} of the validation set. {figures.identical_pairs} pairs of images of one "
        f"class are equal. RMSE is in levels of 255."
    )


def published_table(published: Mapping[str, InceptionFigures]) -> str:
    """A row for each set of images."""
    rows = [
        [
            name,
            each.images,
            f"{each.fid:.2f}",
            _number(each.inception_score),
            _number(each.precision, ".3f"),
            _number(each.recall, ".3f"),
        ]
        for name, each in published.items()
    ]
    header = ("", "images", "FID", "Inception Score", "precision", "recall")
    return f"## Published protocol (Inception features)\n\n{_table(header, rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _against_placeholder(figures: Reconstruction) -> dict[str, Any] | None:
    best = best_placeholder(figures)
    if best is None:
        return None
    ratio = figures.codecs[0].perceptual_distance / best.perceptual_distance
    return {"name": best.name, "max_bytes": best.max_bytes, "perceptual_distance_ratio": ratio}


def plain(value: Any) -> Any:
    """Values for JSON: dataclasses as dictionaries, without fields that ``repr`` omits; NaN and infinity become None."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.repr}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bytes(codec: CodecFigures, unit: str = " bytes") -> str:
    """The number of bytes, or if images differ their mean, as ``406 (mean)``."""
    exact = codec.mean_bytes == codec.max_bytes
    return f"{codec.max_bytes}{unit}" if exact else f"{codec.mean_bytes:.0f}{unit} (mean)"


def _number(value: float, form: str = ".2f") -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "-"


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _png(sheet: Image.Image) -> bytes:
    sheet.save(buffer := io.BytesIO(), "png")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda file: file.write(content))
    return path
