"""``titok encode``, ``decode``, ``generate``, ``reconstruct``: with a model loaded here, or a service (``--url``)."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from models.errors import NoImagesError
from service.cli.latents import (
    LatentsDtype,
    LatentsFile,
    LatentsSeed,
    encode_latents,
    encode_one,
    read_latents,
)
from service.cli.options import (
    ApiKey,
    CommandError,
    GeneratorWeights,
    Json,
    Length,
    Tokenizer,
    Url,
    Weights,
    load_settings,
)
from service.cli.terminal import SOME_BROKEN, console, say
from service.errors import ServiceError
from service.imaging.errors import ImageError
from service.imaging.formats import ACCEPTED_SUFFIXES

if TYPE_CHECKING:
    from service.cli.local_models import LocalModels
    from service.client import TiTokClient
    from service.client.calls import Format, GenerateOptions
    from service.client.results import Encoded, Generated, Latents, Reconstruction, Tokenized

_FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_REMOTE_BATCH = 256  # files read and sent before their results are printed
# Longer than any option of ``titok decode``, or with one hyphen and not its only short option.
_CODE_LIKE_OPTION = re.compile(r"-[A-Za-z0-9_-]{15,}|-(?!h$)[A-Za-z0-9_][A-Za-z0-9_-]*")

Output = Annotated[Path, typer.Argument(help="Image file to write: .png, .jpg or .webp; - for standard output (PNG).")]
Preset = Annotated[str, typer.Option(help="Sampling preset: published, demo or fast.")]


def encode(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of images; - for standard input.")],
    length: Length = None,
    latents: LatentsFile = None,
    dtype: LatentsDtype = "float32",
    seed: LatentsSeed = None,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Encode images to tokens. Prints one line of JSON per image.

    Of several images, broken ones are skipped and named on standard error; the exit code is then 3.

    Examples:

        titok encode cat.jpg | jq -r .code

        titok encode photos/ > codes.jsonl

        titok encode photos/ --tokenizer titok-bl-128-vae --latents latents.npy
    """
    paths = [path for given in images for path in image_files(given)]
    if latents is None and seed is not None:
        raise CommandError("--seed applies to --latents")
    if latents is not None:
        if length is not None:
            raise CommandError("--length applies to codes, not to --latents")
        with _command_errors(paths), _models(tokenizer, weights, url, api_key) as models:
            return _write(latents, encode_latents(models, [read_file(path) for path in paths], dtype, seed))
    with _models(tokenizer, weights, url, api_key) as models:
        return _print_codes(models, paths, length, batch=1 if url is None else _REMOTE_BATCH)


def _print_codes(models: LocalModels | TiTokClient, paths: list[Path], length: int | None, *, batch: int) -> None:
    """Encodes ``batch`` images at a time."""
    broken = 0
    with Progress(console=console, transient=True, disable=len(paths) < 2) as progress:
        task = progress.add_task("encode", total=len(paths))
        for start in range(0, len(paths), batch):
            part = paths[start : start + batch]
            for path, result in zip(part, _encode(models, part, length), strict=True):
                if not isinstance(result, CommandError):
                    typer.echo(json.dumps(_document(path, result)))
                elif len(paths) == 1:
                    raise result
                else:
                    broken += 1
                    say(str(result))
            progress.update(task, advance=len(part))
    if broken:
        say(f"{len(paths) - broken} images encoded, {broken} skipped")
        raise typer.Exit(SOME_BROKEN)


def decode(
    code: Annotated[
        str, typer.Argument(help="A code, token ids separated by commas, or a .npy file of an image's latents.")
    ],
    output: Output,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Decode tokens to an image.

    Examples:

        titok decode "$CODE" cat.png

        titok decode 1,5,4095,... - > cat.png
    """
    format_ = _format(output)
    tokens: str | list[int] | Latents = _token_ids(code) if "," in code else code.strip()
    if code.endswith(".npy"):  # no code has a dot
        tokens = read_latents(Path(code))
    with _command_errors(), _models(tokenizer, weights, url, api_key) as models:
        picture = models.decode(tokens, format=format_)
    _write(output, picture.data)


def generate(
    label: Annotated[str, typer.Argument(metavar="CLASS", help="Class name or id; - for unconditional generation.")],
    output: Output,
    n: Annotated[
        int, typer.Option("-n", "--number", min=1, help="Images; with several, cat.png becomes cat-0.png, ...")
    ] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the first image; random by default.")] = None,
    preset: Preset = "demo",
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; by default those of the preset.")] = None,
    as_json: Json = False,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    generator_weights: GeneratorWeights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Generate images of a class. Prints each image's seed and code. Equal seeds give equal images.

    Examples:

        titok generate "golden retriever" dog.png --seed 7

        titok generate cat cat.webp -n 4 --preset fast --json
    """
    options: GenerateOptions = {"preset": preset, "format": _format(output)}
    if seed is not None:
        options["seed"] = seed
    if steps is not None:
        options["steps"] = steps
    if n > 1 and str(output) == "-":
        raise CommandError("several images cannot be written to standard output: name a file, such as cat.png")
    class_ = None if label == "-" else int(label) if label.isdigit() else label
    with _command_errors(), _models(tokenizer, weights, url, api_key, generator_weights) as models:
        for generated in models.generate(class_, n=n, **options):
            path = output if n == 1 else output.with_stem(f"{output.stem}-{generated.index}")
            _write(path, generated.picture.data)
            document = _generation_document(path, generated)
            _print_result(output, document, f"seed {generated.seed}, code {generated.code}", as_json=as_json)


def reconstruct(
    image: Annotated[Path, typer.Argument(help="Image file; - for standard input.")],
    output: Output,
    length: Length = None,
    as_json: Json = False,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Encode, decode and measure quality. Prints PSNR, SSIM and the code.

    Example:

        titok reconstruct cat.jpg what-the-tokens-keep.png
    """
    format_ = _format(output)
    with _command_errors([image]), _models(tokenizer, weights, url, api_key) as models:
        result = models.reconstruct(read_file(image), length=length)
        picture = result.picture
        if picture.content_type != f"image/{format_}":
            tokens = result.code or encode_one(models, read_file(image))  # a VAE has no code
            picture = models.decode(tokens, format=format_)
    _write(output, picture.data)
    psnr = "identical" if result.psnr is None else f"PSNR {result.psnr} dB"
    document = {"psnr": result.psnr, "ssim": result.ssim, **_document(image, result)}
    code = f", code {result.code}" if result.code else ""
    _print_result(output, document, f"{psnr}, SSIM {result.ssim}{code}", as_json=as_json)


def with_codes_as_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``titok``: a code of ``titok decode`` that begins with - gets a space, so that it is no option."""
    if arguments[:1] != ["decode"]:
        return list(arguments)
    is_value = [False, *(argument.startswith("--") for argument in arguments[:-1])]  # of the option before it
    return [
        f" {argument}" if _CODE_LIKE_OPTION.fullmatch(argument) and not value else argument
        for argument, value in zip(arguments, is_value, strict=True)
    ]


@contextmanager
def _models(
    tokenizer: str | None,
    weights: str | None,
    url: str | None,
    api_key: str | None,
    generator_weights: str | None = None,
) -> Iterator[LocalModels | TiTokClient]:
    if url is not None:
        from service.client import TiTokClient  # httpx is slow to import

        with TiTokClient(url, api_key=api_key) as client:
            yield client
        return
    from service.cli.local_models import LocalModels  # torch is slow to import

    settings = load_settings()
    name = tokenizer or settings.tokenizer
    yield LocalModels(name, weights=weights, generator_weights=generator_weights, settings=settings)


def _encode(models: LocalModels | TiTokClient, paths: list[Path], length: int | None) -> list[Encoded | CommandError]:
    """The tokens of each image, or why it has none. Raises ``CommandError`` for what concerns all images."""
    from service.client import TiTokClient

    if isinstance(models, TiTokClient) and len(paths) > 1:
        with suppress(*_broken_image_errors()):
            return list(models.encode([read_file(path) for path in paths], length=length))
    return [_encode_alone(models, path, length) for path in paths]


def _encode_alone(models: LocalModels | TiTokClient, path: Path, length: int | None) -> Encoded | CommandError:
    with _command_errors([path]):
        try:
            return models.encode(read_file(path), length=length)
        except CommandError as error:
            return error
        except _broken_image_errors() as error:
            return CommandError(f"{path}: {error}")


def _broken_image_errors() -> tuple[type[Exception], ...]:
    """Errors that concern one image of several."""
    from service.client.errors import BadRequest, ContentTooLarge, InvalidRequest, UnsupportedMediaType

    return (CommandError, ImageError, BadRequest, ContentTooLarge, InvalidRequest, UnsupportedMediaType)


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


def _document(path: Path, encoded: Encoded | Reconstruction) -> dict[str, Any]:
    return {
        "image": str(path),
        **_tokens_document(encoded),
        "original_size": dict(zip(("width", "height"), encoded.original_size, strict=True)),
    }


def _generation_document(path: Path, generated: Generated) -> dict[str, Any]:
    return {
        "image": str(path),
        **_tokens_document(generated),
        "generator_revision": generated.generator_revision,
        "class_id": generated.class_id,
        "class_name": generated.class_name,
        "seed": generated.seed,
        "settings": dict(generated.settings),
    }


def _tokens_document(tokenized: Tokenized) -> dict[str, Any]:
    names = ("code", "model", "revision")
    return {"tokens": list(tokenized.tokens), **{name: getattr(tokenized, name) for name in names}}


def _print_result(output: Path, document: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Prints a line: on standard output, unless that has the image."""
    typer.echo(json.dumps(document) if as_json else text, err=str(output) == "-")


def image_files(path: Path) -> list[Path]:
    """The path, or the images in and below a folder, sorted by name, without hidden ones. Raises ``NoImagesError``."""
    if not path.is_dir():
        return [path]
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in ACCEPTED_SUFFIXES and file.is_file() and "/." not in f"/{file.relative_to(path)}"
    )
    if not found:
        raise NoImagesError(path)
    return found


def read_file(path: Path) -> bytes:
    """The contents of a file, or of standard input for ``-``. Raises ``CommandError``."""
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
