"""Options that several commands share, and the error of a command."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.settings import Settings, invalid_settings


class CommandError(Exception):
    """An error that the user can correct; the message says how."""


def load_settings(**given: Any) -> Settings:
    """The settings of the environment and of ``given`` options, except empty ones. Raises ``CommandError``."""
    try:
        return Settings(**{name: value for name, value in given.items() if value != ""})
    except ValidationError as error:
        raise CommandError(invalid_settings(error)) from None


Tokenizer = Annotated[
    str | None, typer.Option(help="Variant name of the tokenizer, such as titok-l-32.", envvar="TITOK_TOKENIZER")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights of the tokenizer: file, folder or Hugging Face repository.", envvar="TITOK_TOKENIZER_WEIGHTS"
    ),
]
GeneratorWeights = Annotated[
    str | None,
    typer.Option(
        help="Weights of the generator: file, folder or Hugging Face repository.", envvar="TITOK_GENERATOR_WEIGHTS"
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        help="Send the request to this service, such as http://127.0.0.1:8000, instead of loading a model.",
        envvar="TITOK_URL",
    ),
]
ApiKey = Annotated[str | None, typer.Option(help="API key for --url.", envvar="TITOK_API_KEY")]
Length = Annotated[
    int | None,
    typer.Option(min=1, help="Number of tokens, the first ones; by default all. For prefix-decodable tokenizers."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option("--device", "--devices", help="auto, cpu, cuda or cuda:N.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split to read, such as train, val or test; `all`: all together; `none`: files that name no split."
    ),
]
ImageExtension = Annotated[
    str | None,
    typer.Option(
        help="Extension of the images in archives and folders, such as `jpg`; several with commas: `jpg,seg.png`."
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="Parquet column of the images (default: `image`).")]


def extensions_of(given: str | None) -> tuple[str, ...]:
    """The extensions in ``--image-extension``, in lower case without their first dots."""
    return tuple(text.strip().lstrip(".").lower() for text in (given or "").split(",") if text.strip())
