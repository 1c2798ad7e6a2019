"""The ``titok`` command: serve, or do the same things once, here, without a server."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import ValidationError
from rich.console import Console

from models.codes import CodeError
from models.errors import CheckpointError, ConfigError, UnknownVariantError
from models.preprocess import eval_crop
from service.classes import ClassIndex
from service.evaluation_command import evaluate
from service.media import OUTPUT_EXTENSIONS, MediaLimits, decode_image, encode_image
from service.problems import Problem
from service.settings import Settings
from service.train_command import train
from service.verify_command import verify
from service.version import VERSION

__all__ = ["main"]

app = typer.Typer(name="titok", help="Images to tokens and back.", no_args_is_help=True, add_completion=False)
app.command()(verify)
app.command()(evaluate)
app.add_typer(train, name="train")
console = Console(stderr=True)

_MEDIA_TYPES = {extension: media_type for media_type, extension in OUTPUT_EXTENSIONS.items()} | {"jpeg": "image/jpeg"}

Tokenizer = Annotated[str | None, typer.Option(help="Variant name.", envvar="TITOK_TOKENIZER")]
Weights = Annotated[
    str | None, typer.Option(help="File, folder or hub id of its weights.", envvar="TITOK_TOKENIZER_WEIGHTS")
]


class CommandError(Exception):
    """Something the user can mend; the message says how."""


def main() -> None:
    """Entry point: errors that a user can mend are one line, not a traceback."""
    try:
        app()
    except (CommandError, CheckpointError, ConfigError, UnknownVariantError, CodeError, Problem, ValueError) as error:
        console.print(f"titok: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of metrics and health.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Variant name.")] = None,
    tokenizer_weights: Annotated[str | None, typer.Option(help="File, folder or hub id.")] = None,
    generator: Annotated[str | None, typer.Option(help="Variant name, 'auto' or 'off'.")] = None,
    generator_weights: Annotated[str | None, typer.Option(help="File, folder or hub id.")] = None,
    devices: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, cuda:0,cuda:1 or auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, tf32, tf32x3, float16 or bfloat16.")] = None,
    workers: Annotated[str | None, typer.Option(help="process, or inline: all in one process.")] = None,
    front_ends: Annotated[int | None, typer.Option(help="Processes that answer HTTP; 0: as many as fit.")] = None,
    cache: Annotated[str | None, typer.Option(help="auto, memory, redis or off.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Start the service. Every other setting is an environment variable (see docs/configuration.md)."""
    from service.server import serve as run  # the web framework is slow to import

    flags = {name: value for name, value in locals().items() if name != "run" and value is not None}
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, place['loc']))}: {place['msg']}" for place in error.errors()]
        raise CommandError("; ".join(lines)) from None
    raise typer.Exit(run(settings))


@app.command()
def encode(
    images: Annotated[list[Path], typer.Argument(help="Image files; - is standard input.")],
    tokenizer: Tokenizer = None,
    weights: Weights = None,
) -> None:
    """Print a line of JSON for each image: its tokens and its code."""
    from models import load_tokenizer

    settings = Settings()
    model = load_tokenizer(tokenizer or settings.tokenizer, weights=weights)
    for path in images:
        decoded = decode_image(_read(path), limits=MediaLimits(max_pixels=settings.max_pixels), pointer=str(path))
        tokens = model.encode(eval_crop(decoded.image, model.image_size)[None]).numpy()
        line = {
            "image": str(path),
            "tokens": tokens[0].tolist(),
            "code": model.code_format.to_text(tokens)[0],
            "model": model.name,
            "revision": model.revision,
            "original_size": dict(zip(("width", "height"), decoded.original_size, strict=True)),
        }
        typer.echo(json.dumps(line))


@app.command()
def decode(
    code: Annotated[str, typer.Argument(help="A code, or token ids separated by commas.")],
    output: Annotated[
        Path, typer.Argument(help="Image file to write: .png, .jpg or .webp; - is standard output (PNG).")
    ],
    tokenizer: Tokenizer = None,
    weights: Weights = None,
) -> None:
    """Turn a code back into an image."""
    from models import load_tokenizer

    media_type = _media_type(output)
    model = load_tokenizer(tokenizer or Settings().tokenizer, weights=weights)
    tokens = _tokens(code) if "," in code else model.code_format.from_text([code.strip()])
    _write(output, encode_image(model.decode(tokens).numpy()[0], media_type))


@app.command()
def generate(
    label: Annotated[str, typer.Argument(metavar="CLASS", help="Class by name or id; - for no class.")],
    output: Annotated[
        Path, typer.Argument(help="Image file to write: .png, .jpg or .webp; - is standard output (PNG).")
    ],
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same image.")] = None,
    preset: Annotated[str, typer.Option(help="published, demo or fast.")] = "demo",
    tokenizer: Tokenizer = None,
) -> None:
    """Make a new image of a class with the tokenizer's own generator."""
    from models import load_generator, load_tokenizer

    media_type = _media_type(output)
    name = tokenizer or Settings().tokenizer
    generator, model = load_generator(name), load_tokenizer(name)
    asked = None if label == "-" else int(label) if label.isdigit() else label
    index = ClassIndex(generator.class_names).resolve(asked)
    seed = secrets.randbelow(2**32) if seed is None else seed
    tokens = generator.generate([index], seeds=[seed], preset=preset).numpy()
    _write(output, encode_image(model.decode(tokens).numpy()[0], media_type))
    console.print(f"seed {seed}, code {model.code_format.to_text(tokens)[0]}", highlight=False)


@app.command()
def info(tokenizer: Tokenizer = None) -> None:
    """Print what is known of the variants, or load one and print its facts."""
    if tokenizer is None:
        from models.registry import GENERATORS, TOKENIZERS

        for name, variant in TOKENIZERS.items():
            figures = [f"rFID {variant.rfid}"] if variant.rfid else []
            figures += ["with generator"] if name in GENERATORS else []
            typer.echo(f"{name:<22} {variant.weights!s:<62} {', '.join(figures)}")
        typer.echo(f"titok-service {VERSION}")
        return
    from models import load_tokenizer

    model = load_tokenizer(tokenizer)
    facts = {
        "name": model.name,
        "revision": model.revision,
        "source": model.source,
        "parameters": model.num_parameters,
        "image_size": model.image_size,
        "num_tokens": model.num_tokens,
        "codebook_size": model.codebook_size,
    }
    typer.echo(json.dumps(facts, indent=2))


def _read(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        if str(path) == "-":
            sys.stdout.buffer.write(data)
        else:
            path.write_bytes(data)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None


def _media_type(path: Path) -> str:
    if str(path) == "-":
        return "image/png"
    media_type = _MEDIA_TYPES.get(path.suffix.removeprefix(".").lower())
    if media_type is None:
        raise CommandError(f"{path} does not end in .png, .jpg or .webp")
    return media_type


def _tokens(text: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    try:
        return np.array([[int(part) for part in text.split(",")]], np.int64)
    except (ValueError, OverflowError):
        raise CommandError("token ids are whole numbers separated by commas") from None
