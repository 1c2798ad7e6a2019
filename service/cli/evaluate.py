"""``titok evaluate``: measures a tokenizer and its generator on a dataset."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli.options import CommandError, Device, GeneratorWeights, Tokenizer, Weights, load_settings
from service.cli.terminal import console, say

if TYPE_CHECKING:
    from models.evaluation.run import EvaluationSettings

Data = Annotated[
    Path | None,
    typer.Option(
        help="Dataset: folder of `train-*.tar` and `val-*.tar` shards, or of class folders; `val` alone suffices to "
        "evaluate reconstruction, and a generator with --reference needs none.",
        file_okay=False,
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for the report and the images.", file_okay=False)]
Classes = Annotated[
    Path | None,
    typer.Option(help="Training config whose [training.classes] maps the dataset's classes.", dir_okay=False),
]
Lengths = Annotated[
    str,
    typer.Option(
        metavar="N,N,...", help="Also measure a prefix-decodable tokenizer with its first N tokens, such as 1,4,8,16."
    ),
]
Images = Annotated[int | None, typer.Option(min=2, help="Number of validation images; all by default.")]
References = Annotated[int | None, typer.Option(min=2, help="Number of training images; all by default.")]
Cache = Annotated[Path, typer.Option(help="Folder for decoded images and their features.", file_okay=False)]
Inception = Annotated[
    Path | None,
    typer.Option(help="Inception weights or TorchScript: adds FID, IS, precision and recall.", dir_okay=False),
]
Posterior = Annotated[
    bool, typer.Option("--sample-posterior", help="Reconstruct from a sample of a VAE's posterior, as published.")
]
Reference = Annotated[
    Path | None,
    typer.Option(help="ADM's reference .npz for generated images, instead of the training images.", dir_okay=False),
]
Npz = Annotated[bool, typer.Option("--npz", help="Also write the images as .npz files for the ADM evaluator.")]


def evaluate(
    output: Output,
    data: Data = None,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    generator: Annotated[bool, typer.Option(help="Evaluate the generator too.")] = True,
    generator_weights: GeneratorWeights = None,
    classes: Classes = None,
    lengths: Lengths = "",
    images: Images = None,
    references: References = None,
    per_class: Annotated[int, typer.Option(min=2, help="Generated images per class.")] = 20,
    device: Device = "auto",
    preset: Annotated[str, typer.Option(help="Sampling preset: published, demo or fast.")] = "published",
    cache: Cache = Path("runs/cache"),
    baselines: Annotated[bool, typer.Option(help="Compare with image codecs of equal size.")] = True,
    sample_posterior: Posterior = False,
    inception_weights: Inception = None,
    reference: Reference = None,
    npz: Npz = False,
) -> None:
    """Measure reconstruction and generation quality.

    Example:

        titok evaluate --data photos/ --output report/
    """
    from models.evaluation.run import EvaluationSettings  # torch is slow to import

    settings = EvaluationSettings(
        data=data,
        cache=_folder(cache),
        tokenizer=tokenizer or load_settings().tokenizer,
        weights=weights,
        with_generator=generator,
        generator_weights=generator_weights,
        sources=None if classes is None else _sources(classes),
        lengths=_lengths(lengths),
        images=images,
        references=references,
        per_class=per_class,
        device=device,
        preset=preset,
        baselines=baselines,
        sample_posterior=sample_posterior,
        inception_weights=inception_weights,
        reference=reference,
        keep_images=npz,
    )
    _measure(settings, output)


def _measure(settings: EvaluationSettings, output: Path) -> None:
    """Writes the report, and prints it."""
    from models.evaluation.report import write_images, write_report
    from models.evaluation.run import evaluate as measure

    _folder(output)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        report = measure(settings, track=lambda items, description: progress.track(items, description=description))
    written = write_report(report, output) + (write_images(report, output) if settings.keep_images else [])
    typer.echo(report.to_markdown())
    say("written: " + ", ".join(map(str, written)))


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if text]
    except ValueError:
        raise CommandError(f"--lengths are whole numbers separated by commas, not {text}") from None


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {path}: {error.strerror}") from None
    return path


def _sources(path: Path) -> Mapping[str, str]:
    """The dataset's class for each class of the generator: the inverse of ``training.classes``."""
    try:
        classes = tomllib.loads(path.read_text(encoding="utf-8"))["training"]["classes"]
        return {str(name): str(source) for source, name in classes.items()}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise CommandError(f"{path} has no table [training.classes]") from None
