"""``titok tokenize``: tokenizes a dataset."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from models.preprocessing_options import PUBLISHED
from service.cli.bulk import BatchSize, Destination, Dtype, Ray, RayActors, Threads, run_bulk
from service.cli.options import (
    CommandError,
    Device,
    ImageColumn,
    ImageExtension,
    Length,
    Split,
    Tokenizer,
    Weights,
    extensions_of,
    load_settings,
)
from service.cli.terminal import SOME_BROKEN, say

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of images (subfolders are classes), WebDataset tars or Parquet files: a folder, a file, or a pattern "
        "with `*` or `{000..099}`; a path or a URL such as s3://bucket/set."
    ),
]
Format = Annotated[
    Literal["jsonl", "webdataset", "parquet", "npy", "bin"], typer.Option("--format", help="Output format.")
]
Crops = Annotated[
    Literal["centre", "ten"],
    typer.Option(help="centre: the center crop, as the service does; ten: TiTok's ten training crops."),
]
Flip = Annotated[bool, typer.Option("--flip", help="Also tokenize the mirrored center crop.")]
Preprocessing = Annotated[
    Literal["published", "service"],
    typer.Option(
        help="published: stored colors at full scale, as in the published evaluation; service: as TITOK_COLOR and "
        "TITOK_JPEG_SCALE say, for the tokens of the service."
    ),
]
ShardImages = Annotated[int, typer.Option(min=1, help="Source images per output file.")]
LabelColumn = Annotated[str | None, typer.Option(help="Parquet column of the labels (default: `label`).")]
KeyColumn = Annotated[str | None, typer.Option(help="Parquet column of the keys (default: `key` or `__key__`).")]
Latents = Annotated[
    Literal["float32", "float16"] | None,
    typer.Option(
        help="Write vectors in this number format: the tokens of a VAE, else those before quantization; parquet or npy."
    ),
]
LatentsSeed = Annotated[
    int | None, typer.Option(min=0, help="With --latents: sample a VAE's posterior, by seed, key and crop.")
]
NoLabel = Annotated[bool, typer.Option("--no-label", help="Do not read labels.")]


def tokenize(
    source: SourceArgument,
    dest: Destination,
    output: Format = "parquet",
    crops: Crops = "centre",
    flip: Flip = False,
    preprocessing: Preprocessing = "published",
    shard_images: ShardImages = 10_000,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 0,
    decode_threads: Threads = 0,
    split: Split = None,
    image_extension: ImageExtension = None,
    no_label: NoLabel = False,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    key_column: KeyColumn = None,
    length: Length = None,
    latents: Latents = None,
    seed: LatentsSeed = None,
    ray: Ray = None,
    ray_actors: RayActors = 0,
) -> None:
    """Tokenize a dataset. Rerun the command to resume; the output is byte-identical.

    Broken images are skipped and listed in DEST/errors.jsonl; the exit code is then 3.

    Examples:

        titok tokenize photos/ tokens/ --crops ten

        titok tokenize 's3://bucket/train-*.tar' tokens/ --format webdataset --tokenizer titok-l-32

        titok tokenize photos/ latents/ --latents float16 --tokenizer titok-bl-128-vae
    """
    from service.bulk.crops import Crops
    from service.bulk.sources import SourceOptions, open_source
    from service.bulk.tokenization import LatentOptions, TokenizeJob

    if latents is None and seed is not None:
        raise CommandError("--seed applies to --latents")

    settings = load_settings()
    options = SourceOptions(
        split=split,
        image_column=image_column,
        label_column=label_column,
        key_column=key_column,
        image_extensions=extensions_of(image_extension),
        with_labels=not no_label,
    )
    job = TokenizeJob(
        source=open_source(source, options),
        destination=dest,
        tokenizer=tokenizer or settings.tokenizer,
        weights=weights,
        device=device,
        dtype=dtype,
        format=output,
        crops=Crops(crops, flip),
        shard_images=shard_images,
        batch_size=batch_size,
        threads=decode_threads,
        max_pixels=settings.max_pixels,
        preprocessing=settings.preprocessing if preprocessing == "service" else PUBLISHED,
        length=length,
        latents=None if latents is None else LatentOptions(dtype=latents, seed=seed),
    )
    result = run_bulk("tokenize", job, ray, ray_actors)
    listed = f" (see {dest / 'errors.jsonl'})" if result.broken else ""
    say(f"{result.images} images tokenized, {result.broken} skipped{listed}, {result.shards} shards in {dest}")
    raise typer.Exit(SOME_BROKEN if result.broken else 0)
