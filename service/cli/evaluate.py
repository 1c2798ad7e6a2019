"""``titok evaluate``: how good a tokenizer and its generator are on photographs of one's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.errors import missing_package
from service.settings import Settings

__all__ = ["EvaluationError", "evaluate"]


class EvaluationError(ValueError):
    """Something about the data, the packages or the options that the user can mend; the message says how."""


def evaluate(
    data: Annotated[
        Path, typer.Option(help="Folder of photographs: train-*.tar and val-*.tar, or classes.", file_okay=False)
    ],
    output: Annotated[Path, typer.Option(help="Folder for the figures and the pictures.", file_okay=False)],
    tokenizer: Annotated[str | None, typer.Option(help="Variant name.", envvar="TITOK_TOKENIZER")] = None,
    weights: Annotated[
        str | None, typer.Option(help="File, folder or hub id of its weights.", envvar="TITOK_TOKENIZER_WEIGHTS")
    ] = None,
    generator: Annotated[bool, typer.Option(help="Whether to evaluate its generator too.")] = True,
    generator_weights: Annotated[
        str | None, typer.Option(help="File, folder or hub id.", envvar="TITOK_GENERATOR_WEIGHTS")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Training configuration that says what the data calls the generator's classes.", dir_okay=False
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(min=2, help="Validation photographs; all by default.")] = None,
    references: Annotated[int | None, typer.Option(min=2, help="Training photographs; all by default.")] = None,
    per_class: Annotated[int, typer.Option(min=2, help="Generated images of each class.")] = 20,
    preset: Annotated[str, typer.Option(help="published, demo or fast.")] = "published",
    cache: Annotated[Path, typer.Option(help="Folder for decoded photographs and their features.", file_okay=False)] = (
        Path("runs/cache")
    ),
    inception_weights: Annotated[
        Path | None,
        typer.Option(help="torch-fidelity's Inception weights: adds FID, IS, precision, recall.", dir_okay=False),
    ] = None,
    npz: Annotated[bool, typer.Option("--npz", help="Also write the images as the ADM evaluator reads them.")] = False,
) -> None:
    """Measure reconstructions and generated images, beside what as few bytes buy elsewhere."""
    try:  # torch is slow to import, and some of these need the extra packages
        from models.errors import DataError
        from models.evaluation.inception import InceptionMissing
        from models.evaluation.lite0 import Lite0Missing
        from models.evaluation.placeholders import PlaceholdersMissing
        from models.evaluation.report import write_images, write_report
        from models.evaluation.run import EvaluationSettings
        from models.evaluation.run import evaluate as measure
    except ModuleNotFoundError as error:
        raise EvaluationError(missing_package(error, "evaluate")) from error
    settings = EvaluationSettings(
        data=data,
        cache=_folder(cache),
        tokenizer=tokenizer or Settings().tokenizer,
        weights=weights,
        with_generator=generator,
        generator_weights=generator_weights,
        sources=None if classes is None else _sources(classes),
        images=images,
        references=references,
        per_class=per_class,
        preset=preset,
        inception_weights=inception_weights,
        keep_images=npz,
    )
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        try:
            _folder(output)
            report = measure(settings, track=lambda items, description: progress.track(items, description=description))
        except (DataError, Lite0Missing, PlaceholdersMissing, InceptionMissing) as error:
            raise EvaluationError(str(error)) from error
    written = write_report(report, output) + (write_images(report, output) if npz else [])
    typer.echo(report.to_markdown())
    console.print("written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"cannot make the folder {path}: {error.strerror}") from None
    return path


def _sources(path: Path) -> Mapping[str, str]:
    """The data's class for each of the generator's, turned round from ``training.classes``."""
    try:
        classes = tomllib.loads(path.read_text(encoding="utf-8"))["training"]["classes"]
        return {str(name): str(source) for source, name in classes.items()}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise EvaluationError(f"cannot read {path}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise EvaluationError(f"{path} has no table [training.classes]") from None
