"""The ``titok`` command."""

import json
import sys
from typing import Annotated, Any

import typer

from models.errors import CheckpointError, DataError, UnknownVariantError, missing_package
from service.cli.cache import cache
from service.cli.doctor import doctor
from service.cli.evaluate import evaluate
from service.cli.health import health
from service.cli.images import decode, encode, generate, reconstruct
from service.cli.keys import keys
from service.cli.options import CommandError, Tokenizer, load_settings
from service.cli.pull import pull
from service.cli.terminal import say
from service.cli.tokenize import tokenize
from service.cli.train import train
from service.cli.verify import verify
from service.errors import ServiceError
from service.settings import Settings
from service.version import VERSION

app = typer.Typer(
    name="titok",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (encode, decode, generate, reconstruct, tokenize, pull, health, doctor, verify, evaluate):
    app.command()(command)
app.add_typer(train, name="train")
app.add_typer(cache, name="cache")
app.add_typer(keys, name="keys")

_CORRECTABLE = (
    *(CommandError, CheckpointError, DataError, UnknownVariantError, ServiceError, ValueError),
    ModuleNotFoundError,
)


def main() -> None:
    """Runs the command. Prints errors that the user can correct as one line, without a traceback."""
    try:
        app(prog_name="titok")
    except _CORRECTABLE as error:
        message = missing_package(error) if isinstance(error, ModuleNotFoundError) else str(error)
        if message is None:
            raise
        say(f"titok: {message}", style="red")
        sys.exit(1)


def _print_version(given: bool) -> None:
    if given:
        typer.echo(f"titok {VERSION}")
        raise typer.Exit


@app.callback()
def _titok(
    version: Annotated[  # handled by its callback
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Image tokenization with TiTok: images to discrete tokens and back, and class-conditional generation."""


def _setting(name: str) -> Any:
    """The command-line option of a setting, with the setting's description and default."""
    setting = Settings.model_fields[name]
    default = False if setting.default is None else str(setting.default)
    return typer.Option(help=setting.description, show_default=default)


@app.command()
def serve(
    host: Annotated[str | None, _setting("host")] = None,
    port: Annotated[int | None, _setting("port")] = None,
    admin_port: Annotated[int | None, _setting("admin_port")] = None,
    tokenizer: Annotated[str | None, _setting("tokenizer")] = None,
    tokenizer_weights: Annotated[str | None, _setting("tokenizer_weights")] = None,
    generator: Annotated[str | None, _setting("generator")] = None,
    generator_weights: Annotated[str | None, _setting("generator_weights")] = None,
    devices: Annotated[str | None, _setting("devices")] = None,
    dtype: Annotated[str | None, _setting("dtype")] = None,
    workers: Annotated[str | None, _setting("workers")] = None,
    front_ends: Annotated[int | None, _setting("front_ends")] = None,
    cache: Annotated[str | None, _setting("cache")] = None,
    log_level: Annotated[str | None, _setting("log_level")] = None,
    log_format: Annotated[str | None, _setting("log_format")] = None,
) -> None:
    """Start the service.

    Every setting is an environment variable as well, such as TITOK_PORT for --port. docs/configuration.md lists those
    without an option.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    from service.processes.serve import serve as run  # the web framework is slow to import

    raise typer.Exit(run(load_settings(**flags)))


@app.command()
def info(tokenizer: Tokenizer = None) -> None:
    """List the model variants, or load one and describe it."""
    if tokenizer is None:
        from models.checkpoints.registry import GENERATORS, TOKENIZERS

        for name, variant in TOKENIZERS.items():
            notes = [f"rFID {variant.rfid}"] if variant.rfid else []
            notes += ["with generator"] if name in GENERATORS else []
            typer.echo(f"{name:<22} {variant.weights!s:<62} {', '.join(notes)}")
        typer.echo(f"titok-service {VERSION}")
        return
    from models import load_tokenizer

    model = load_tokenizer(tokenizer)
    description = {
        "name": model.name,
        "revision": model.revision,
        "source": model.source,
        "parameters": model.num_parameters,
        "image_size": model.image_size,
        "num_tokens": model.num_tokens,
        "codebook_size": model.codebook_size,
    }
    typer.echo(json.dumps(description, indent=2))
