"""``titok encode``, ``decode``, ``generate``, ``reconstruct``: with a model loaded here, or a service (``--url``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from service.cli.options import ApiKey, CommandError, Tokenizer, Url, Weights, load_settings
from service.cli.terminal import console, say
from service.errors import ServiceError
from service.imaging.formats import ACCEPTED_SUFFIXES

if TYPE_CHECKING:
    from service.cli.local_models import LocalModels
    from service.client import Encoded, TiTokClient
    from service.client.calls import Format, GenerateOptions

_FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_REMOTE_BATCH = 256  # files read and sent before their results are printed

Output = Annotated[Path, typer.Argument(help="Image file to write: .png, .jpg or .webp; - for standard output (PNG).")]


def encode(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of images; - for standard input.")],
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Encode images to tokens. Prints one line of JSON per image."""
    paths = [path for given in images for path in _image_files(given)]
    batch = 1 if url is None else _REMOTE_BATCH
    with (
        _models(tokenizer, weights, url, api_key) as models,
        Progress(console=console, transient=True, disable=len(paths) < 2) as progress,
    ):
        task = progress.add_task("encode", total=len(paths))
        for start in range(0, len(paths), batch):
            part = paths[start : start + batch]
            with _command_errors(part):
                results = _encode(models, [_read(path) for path in part])
            for path, result in zip(part, results, strict=True):
                typer.echo(json.dumps(_document(path, result)))
            progress.update(task, advance=len(part))


def decode(
    code: Annotated[str, typer.Argument(help="A code, or token ids separated by commas.")],
    output: Output,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Decode tokens to an image."""
    format_ = _format(output)
    tokens = _token_ids(code) if "," in code else code.strip()
    with _command_errors(), _models(tokenizer, weights, url, api_key) as models:
        picture = models.decode(tokens, format=format_)
    _write(output, picture.data)


def generate(
    label: Annotated[str, typer.Argument(metavar="CLASS", help="Class name or id; - for unconditional generation.")],
    output: Output,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; equal seeds give equal images.")] = None,
    preset: Annotated[str, typer.Option(help="Sampling preset: published, demo or fast.")] = "demo",
    tokenizer: Tokenizer = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Generate an image of a class."""
    options: GenerateOptions = {"preset": preset, "format": _format(output)}
    if seed is not None:
        options["seed"] = seed
    class_ = None if label == "-" else int(label) if label.isdigit() else label
    with _command_errors(), _models(tokenizer, None, url, api_key) as models:
        (generated,) = models.generate(class_, **options)
    _write(output, generated.picture.data)
    say(f"seed {generated.seed}, code {generated.code}")


def reconstruct(
    image: Annotated[Path, typer.Argument(help="Image file; - for standard input.")],
    output: Output,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Encode, decode and measure quality (PSNR and SSIM)."""
    format_ = _format(output)
    with _command_errors([image]), _models(tokenizer, weights, url, api_key) as models:
        result = models.reconstruct(_read(image))
        picture = result.picture
        if picture.content_type != f"image/{format_}":
            picture = models.decode(result.code, format=format_)
    _write(output, picture.data)
    psnr = "identical" if result.psnr is None else f"PSNR {result.psnr} dB"
    say(f"{psnr}, SSIM {result.ssim}, code {result.code}")


@contextmanager
def _models(
    tokenizer: str | None, weights: str | None, url: str | None, api_key: str | None
) -> Iterator[LocalModels | TiTokClient]:
    if url is not None:
        from service.client import TiTokClient  # httpx is slow to import

        with TiTokClient(url, api_key=api_key) as client:
            yield client
        return
    from service.cli.local_models import LocalModels  # torch is slow to import

    settings = load_settings()
    yield LocalModels(tokenizer or settings.tokenizer, weights=weights, settings=settings)


def _encode(models: LocalModels | TiTokClient, images: list[bytes]) -> list[Encoded]:
    from service.client import TiTokClient

    if isinstance(models, TiTokClient) and len(images) > 1:
        return models.encode(images)
    return [models.encode(image) for image in images]


@contextmanager
def _command_errors(paths: Sequence[Path] = ()) -> Iterator[None]:
    """Raises errors of models as ``CommandError``, with the path of the offending image."""
    from service.client.errors import ServiceProblem, TiTokError

    try:
        yield
    except (ServiceError, TiTokError) as error:
        index = (error.index or 0) if isinstance(error, ServiceProblem) else 0
        offending = paths[index : index + 1] if isinstance(error, ServiceProblem | ServiceError) else ()
        raise CommandError(": ".join([*map(str, offending), str(error)])) from None


def _document(path: Path, encoded: Encoded) -> dict[str, Any]:
    return {
        "image": str(path),
        "tokens": list(encoded.tokens),
        "code": encoded.code,
        "model": encoded.model,
        "revision": encoded.revision,
        "original_size": dict(zip(("width", "height"), encoded.original_size, strict=True)),
    }


def _image_files(path: Path) -> list[Path]:
    """The path, or the images in and below a folder, sorted by name."""
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


def _format(path: Path) -> Format:
    format_ = "png" if str(path) == "-" else _FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise CommandError(f"{path} does not end in .png, .jpg or .webp")
    return format_


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CommandError("token ids must be whole numbers separated by commas") from None
