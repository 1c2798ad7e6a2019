"""``titok encode``, ``decode``, ``generate``, ``reconstruct``: on models loaded here, or on a service (``--url``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import Progress

from service.errors import ServiceError
from service.imaging.encoding import OUTPUT_EXTENSIONS
from service.imaging.formats import ACCEPTED_SUFFIXES
from service.settings import Settings

if TYPE_CHECKING:
    from service.client import Encoded, Generated, Picture, Reconstruction

__all__ = ["CommandError", "ImageModels", "Tokenizer", "decode", "encode", "generate", "reconstruct"]

console = Console(stderr=True)

_MEDIA_TYPES = {extension: media_type for media_type, extension in OUTPUT_EXTENSIONS.items()} | {"jpeg": "image/jpeg"}
_REMOTE_FILES = 256  # read and sent before their lines are printed

Tokenizer = Annotated[
    str | None, typer.Option(help="Variant name of the model to load here.", envvar="TITOK_TOKENIZER")
]
Weights = Annotated[
    str | None, typer.Option(help="File, folder or hub id of its weights.", envvar="TITOK_TOKENIZER_WEIGHTS")
]
Url = Annotated[
    str | None,
    typer.Option(help="A running service to ask instead, such as http://127.0.0.1:8000.", envvar="TITOK_URL"),
]
Key = Annotated[str | None, typer.Option(help="Its API key, if it asks for one.", envvar="TITOK_API_KEY")]
Output = Annotated[Path, typer.Argument(help="Image file to write: .png, .jpg or .webp; - is standard output (PNG).")]


class CommandError(Exception):
    """Something the user can mend; the message says how."""


class ImageModels(Protocol):
    """What the commands need, of models here or elsewhere."""

    def encode(self, images: Sequence[bytes]) -> list[Encoded]:
        """Tokens of image files."""

    def decode(self, tokens: str | Sequence[int], *, media_type: str) -> Picture:
        """The picture of a code, or of token ids."""

    def generate(self, label: int | str | None, *, seed: int | None, preset: str, media_type: str) -> Generated:
        """A new image of a class."""

    def reconstruct(self, image: bytes, *, media_type: str) -> Reconstruction:
        """An image after its tokens, and how close it came."""


def encode(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them; - is standard input.")],
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print a line of JSON for each image: its tokens and its code."""
    paths = [path for given in images for path in _files(given)]
    models, at_once = _models(tokenizer, weights, url, api_key), 1 if url is None else _REMOTE_FILES
    with Progress(console=console, transient=True, disable=len(paths) < 2) as progress:
        task = progress.add_task("encode", total=len(paths))
        for start in range(0, len(paths), at_once):
            part = paths[start : start + at_once]
            with _naming(part):
                results = models.encode([_read(path) for path in part])
            for path, result in zip(part, results, strict=True):
                typer.echo(json.dumps(_line(path, result)))
            progress.update(task, advance=len(part))


def decode(
    code: Annotated[str, typer.Argument(help="A code, or token ids separated by commas.")],
    output: Output,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Turn a code back into an image."""
    media_type = _media_type(output)
    tokens = _tokens(code) if "," in code else code.strip()
    with _naming():
        picture = _models(tokenizer, weights, url, api_key).decode(tokens, media_type=media_type)
    _write(output, picture.data)


def generate(
    label: Annotated[str, typer.Argument(metavar="CLASS", help="Class by name or id; - for no class.")],
    output: Output,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same image.")] = None,
    preset: Annotated[str, typer.Option(help="published, demo or fast.")] = "demo",
    tokenizer: Tokenizer = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Make a new image of a class with the tokenizer's own generator."""
    media_type = _media_type(output)
    asked = None if label == "-" else int(label) if label.isdigit() else label
    with _naming():
        made = _models(tokenizer, None, url, api_key).generate(asked, seed=seed, preset=preset, media_type=media_type)
    _write(output, made.picture.data)
    console.print(f"seed {made.seed}, code {made.code}", highlight=False)


def reconstruct(
    image: Annotated[Path, typer.Argument(help="Image file; - is standard input.")],
    output: Output,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """See what an image's tokens keep of it: the image they make, and how close it comes."""
    media_type = _media_type(output)
    with _naming([image]):
        made = _models(tokenizer, weights, url, api_key).reconstruct(_read(image), media_type=media_type)
    _write(output, made.picture.data)
    psnr = "no difference" if made.psnr is None else f"PSNR {made.psnr} dB"
    console.print(f"{psnr}, SSIM {made.ssim}, code {made.code}", highlight=False)


def _models(tokenizer: str | None, weights: str | None, url: str | None, api_key: str | None) -> ImageModels:
    if url is not None:
        from service.cli.remote_models import RemoteModels  # who runs models here needs no HTTP

        return RemoteModels(url, api_key=api_key)
    from service.cli.local_models import LocalModels  # torch is slow to import

    settings = Settings()
    return LocalModels(tokenizer or settings.tokenizer, weights=weights, max_pixels=settings.max_pixels)


@contextmanager
def _naming(paths: Sequence[Path] = ()) -> Iterator[None]:
    """Turns what the models raise into one line, with the file to blame before it."""
    from service.client.errors import ServiceProblem, TiTokError

    try:
        yield
    except (ServiceError, TiTokError) as error:
        place = (error.index or 0) if isinstance(error, ServiceProblem) else 0
        blamed = paths[place : place + 1] if isinstance(error, ServiceProblem | ServiceError) else ()
        raise CommandError(": ".join([*map(str, blamed), str(error)])) from None


def _line(path: Path, encoded: Encoded) -> dict[str, Any]:
    return {
        "image": str(path),
        "tokens": list(encoded.tokens),
        "code": encoded.code,
        "model": encoded.model,
        "revision": encoded.revision,
        "original_size": dict(zip(("width", "height"), encoded.original_size, strict=True)),
    }


def _files(path: Path) -> list[Path]:
    """The path itself, or the images in a folder and below, by name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in ACCEPTED_SUFFIXES and file.is_file())


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


def _tokens(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError("token ids are whole numbers separated by commas") from None
