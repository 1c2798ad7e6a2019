"""The ``titok`` command: serve, or do the same things once, here or on a running service."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from models.codes.code_format import CodeError
from models.errors import CheckpointError, ConfigError, UnknownVariantError
from service.cli.cache import cache
from service.cli.doctor import doctor
from service.cli.evaluate import evaluate
from service.cli.images import CommandError, Tokenizer, decode, encode, generate, reconstruct
from service.cli.keys import keys
from service.cli.tokenize import tokenize
from service.cli.train import train
from service.cli.verify import verify
from service.errors import ServiceError
from service.settings import Settings, invalid_settings
from service.version import VERSION

__all__ = ["main"]

app = typer.Typer(name="titok", help="Images to tokens and back.", no_args_is_help=True, add_completion=False)
for command in (encode, decode, generate, reconstruct):
    app.command()(command)
app.command()(tokenize)
app.command()(doctor)
app.command()(verify)
app.command()(evaluate)
app.add_typer(train, name="train")
app.add_typer(cache, name="cache")
app.add_typer(keys, name="keys")
console = Console(stderr=True)


def main() -> None:
    """Entry point: errors that a user can mend are one line, not a traceback."""
    try:
        app()
    except (
        CommandError,
        CheckpointError,
        ConfigError,
        UnknownVariantError,
        CodeError,
        ServiceError,
        ValueError,
    ) as error:
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
    log_format: Annotated[str | None, typer.Option(help="auto, json or text.")] = None,
) -> None:
    """Start the service. Every other setting is an environment variable (see docs/configuration.md)."""
    from service.processes.serve import serve as run  # the web framework is slow to import

    flags = {name: value for name, value in locals().items() if name != "run" and value is not None}
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        raise CommandError(invalid_settings(error)) from None
    raise typer.Exit(run(settings))


@app.command()
def info(tokenizer: Tokenizer = None) -> None:
    """Print what is known of the variants, or load one and print its facts."""
    if tokenizer is None:
        from models.checkpoints.registry import GENERATORS, TOKENIZERS

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
