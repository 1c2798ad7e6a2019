"""The ``titok`` command."""

import sys
from typing import Annotated, Any

import typer

from models.errors import CheckpointError, DataError, UnknownVariantError, missing_package
from service.cli.cache import cache
from service.cli.detokenize import detokenize
from service.cli.doctor import doctor
from service.cli.evaluate import evaluate
from service.cli.export import export
from service.cli.fid import fid
from service.cli.health import health
from service.cli.images import decode, encode, generate, reconstruct, with_codes_as_arguments
from service.cli.keys import keys
from service.cli.models import info, models
from service.cli.options import CommandError, load_settings
from service.cli.pull import pull
from service.cli.sample import sample
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
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(encode, decode, generate, reconstruct, tokenize, detokenize, sample),
    *(pull, health, doctor, verify, evaluate, fid, models, info, export),
):
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
        app(prog_name="titok", args=with_codes_as_arguments(sys.argv[1:]))
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
    """The command-line option of a setting: its description, environment variable and default."""
    setting = Settings.model_fields[name]
    default = False if setting.default is None else str(setting.default)
    return typer.Option(help=f"{setting.description} (env var: TITOK_{name.upper()})", show_default=default)


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

    Examples:

        titok serve --port 9000

        titok serve --tokenizer titok-l-32 --devices cuda
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    from service.processes.serve import serve as run  # the web framework is slow to import

    raise typer.Exit(run(load_settings(**flags)))
