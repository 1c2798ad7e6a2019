"""``titok sample``: generates many images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from service.cli.bulk import (
    BatchSize,
    Destination,
    Dtype,
    ImageFormat,
    ImageShard,
    Quality,
    Ray,
    RayActors,
    Threads,
    run_bulk,
)
from service.cli.options import Device, GeneratorWeights, Tokenizer, Weights, load_settings
from service.cli.terminal import say

PerClass = Annotated[int, typer.Option(min=1, help="Images of each class.")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Names or ids of classes, separated by semicolons; all classes of the generator by default.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first image; image i has the seed SEED + i.")]
Preset = Annotated[str, typer.Option(help="Sampling preset: published, demo or fast.")]
Tokens = Annotated[
    Literal["parquet", "webdataset", "npy", "bin", "jsonl", "none"], typer.Option(help="Format of the tokens.")
]
Images = Annotated[
    Literal["webdataset", "folder", "npz", "none"],
    typer.Option(help="Format of the images, as in `titok detokenize`; none: only tokens."),
]


def sample(
    dest: Destination,
    per_class: PerClass,
    classes: Classes = None,
    seed: Seed = 0,
    preset: Preset = "published",
    tokens: Tokens = "parquet",
    images: Images = "webdataset",
    image_format: ImageFormat = "png",
    quality: Quality = None,
    shard_images: ImageShard = 1_000,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    generator_weights: GeneratorWeights = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 0,
    threads: Threads = 0,
    ray: Ray = None,
    ray_actors: RayActors = 0,
) -> None:
    """Generate many images, as tokens and as image files. Rerun the command to resume; the output is byte-identical.

    Images are ordered by class; image i, from 0, has the seed SEED + i.

    Examples:

        titok sample samples/ --per-class 50 --images npz --tokens none

        titok sample samples/ --per-class 10 --classes 'cat;dog' --images folder
    """
    from models import load_generator
    from service.bulk.image_formats import ImageOptions
    from service.bulk.sampling import SampleJob, Samples, source_of

    name = tokenizer or load_settings().tokenizer
    generator = load_generator(name, weights=generator_weights)
    generator.settings(preset)
    class_names = generator.class_names
    del generator  # each device loads its own
    samples = Samples(_class_ids(classes, class_names, name), per_class, seed)
    job = SampleJob(
        source=source_of(samples, name),
        destination=dest,
        tokenizer=name,
        weights=weights,
        device=device,
        dtype=dtype,
        shard_images=shard_images,
        batch_size=batch_size,
        threads=threads,
        samples=samples,
        generator_weights=generator_weights,
        preset=preset,
        format=None if tokens == "none" else tokens,
        images=None if images == "none" else ImageOptions(images, f"image/{image_format}", quality, class_names),
    )
    result = run_bulk("sample", job, ray, ray_actors)
    say(f"{result.images} images generated, {result.shards} shards in {dest}")


def _class_ids(given: str | None, names: Sequence[str], model: str) -> tuple[int, ...]:
    """Names and ids separated by semicolons -> ids; all of them for None. Raises ``ServiceError``."""
    from service.operations.classes import ClassIndex

    if given is None:
        return tuple(range(len(names)))
    index = ClassIndex(names, model=model)
    texts = [text.strip() for text in given.split(";")]
    found = (index.resolve(int(text) if text.isdecimal() else text) for text in texts)
    return tuple(label for label in found if label is not None)
