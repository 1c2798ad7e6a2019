"""``titok export``: writes the networks of a variant to ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.checkpoints.bundled import DEFAULT_VARIANT
from service.cli.images import image_files, read_file
from service.cli.options import CommandError, GeneratorWeights, Weights, load_settings

if TYPE_CHECKING:
    from models import Generator, Tokenizer
    from models.arrays import Pixels
    from models.export.onnx_file import Part

_SAMPLES = Path(__file__).parents[1] / "api" / "playground" / "samples"
_SEEDS = 4
_LARGEST_PIXEL_DIFFERENCE = 2


def export(
    name: Annotated[str, typer.Argument(help="Variant name, such as titok-l-32.")] = DEFAULT_VARIANT,
    output: Annotated[Path, typer.Option(help="Folder for the files.", file_okay=False)] = Path("exported"),
    weights: Weights = None,
    generator_weights: GeneratorWeights = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="encoder, decoder or generator; repeatable. By default all that the variant has."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the metadata.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the files with PyTorch.")] = False,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images for --verify; by default the playground's.", file_okay=False)
    ] = None,
) -> None:
    """Write encoder, decoder and one sampling step of the generator to ONNX files with a dynamic batch.

    Exit code 1 if --verify finds that a float32 file differs from PyTorch by more than rounding.

    Example:

        titok export titok-s-128 --dtype float16 --output exported --verify
    """
    from models.checkpoints.registry import GENERATORS  # torch is slow to import
    from models.export.onnx_file import DTYPES, PARTS

    if dtype not in DTYPES:
        raise CommandError(f"--dtype {dtype!r} cannot be exported: choose {' or '.join(DTYPES)}")
    if unknown := set(part or ()) - set(PARTS):
        raise CommandError(f"--part {unknown.pop()!r} is unknown: choose {', '.join(PARTS)}")
    chosen = [each for each in PARTS if (each in part if part else each != "generator" or name in GENERATORS)]
    models = _Models(name, weights, generator_weights)
    paths = {each: output / f"{name}-{each}-{dtype}.onnx" for each in chosen}
    try:
        models.export(paths, dtype=dtype, licence=licence or _licence(name, weights))
    except OSError as error:
        raise CommandError(f"cannot write into {output}: {error.strerror}") from None
    for path in paths.values():
        typer.echo(f"{path}  {path.stat().st_size:,} bytes")
    if verify:
        same = models.compare(paths, images)
        raise typer.Exit(0 if same or dtype != "float32" else 1)


@dataclass
class _Models:
    """What is exported, and the same in float32 to compare with."""

    name: str
    weights: str | None
    generator_weights: str | None

    def tokenizer(self, dtype: str) -> Tokenizer:
        from models import load_tokenizer

        return load_tokenizer(self.name, weights=self.weights, dtype=dtype)

    def generator(self, dtype: str) -> Generator:
        from models import load_generator

        return load_generator(self.name, weights=self.generator_weights, dtype=dtype)

    def export(self, paths: Mapping[Part, Path], *, dtype: str, licence: str) -> None:
        """Writes the parts."""
        from models.export.onnx_file import export_generator, export_tokenizer

        if "generator" in paths:
            export_generator(self.generator(dtype), paths["generator"], licence=licence)
        if paths.keys() - {"generator"}:
            tokenizer = self.tokenizer(dtype)
            for part, path in paths.items():
                if part != "generator":
                    export_tokenizer(tokenizer, part, path, licence=licence)

    def compare(self, paths: Mapping[Part, Path], images: Path | None) -> bool:
        """Prints how the files differ from PyTorch in float32; whether only by rounding."""
        from models.export.comparison import compare_decoder, compare_encoder, compare_generator

        same = True
        if "generator" in paths:
            steps = compare_generator(paths["generator"], self.generator("float32"), seeds=range(_SEEDS))
            typer.echo(f"generator  {steps.equal} of {steps.compared} tokens of all sampling steps equal")
            same &= steps.is_same
        if paths.keys() - {"generator"}:
            tokenizer = self.tokenizer("float32")
            pixels = _pixels(images, tokenizer.image_size)
            typer.echo(f"images     {len(pixels)}")
        if "encoder" in paths:
            ids, deviation = compare_encoder(paths["encoder"], tokenizer, pixels)
            if ids is not None:
                typer.echo(f"encoder    {ids.equal} of {ids.compared} ids equal, {ids.close} others within rounding")
                same &= ids.is_same
            typer.echo(f"           latents differ by at most {deviation:.1e}")
        if "decoder" in paths:
            difference = compare_decoder(paths["decoder"], tokenizer, pixels)
            typer.echo(
                f"decoder    pixels differ by at most {difference.largest} levels, {difference.mean:.4f} on average"
            )
            same &= difference.largest <= _LARGEST_PIXEL_DIFFERENCE
        return same


def _pixels(folder: Path | None, size: int) -> Pixels:
    """The images of a folder, or the playground's samples: uint8 [B, S, S, 3]."""
    import numpy as np

    from service.imaging.decoding import decode_image
    from service.imaging.limits import MediaLimits

    paths = image_files(_SAMPLES if folder is None else folder)
    if not paths:
        raise CommandError(f"no images in {folder}")
    settings = load_settings()
    limits, options = MediaLimits(max_pixels=settings.max_pixels), settings.preprocessing
    return np.stack(
        [decode_image(read_file(path), limits=limits, options=options, size=size).crop(size) for path in paths]
    )


def _licence(name: str, weights: str | None) -> str:
    if weights is not None:
        return "not stated"
    if name == DEFAULT_VARIANT:
        return "trained on photographs that are partly for research use only"
    return "Apache-2.0 as published; trained on ImageNet, for research purposes"
