"""``titok detokenize``: decodes the tokens of a dataset."""

from __future__ import annotations

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
from service.cli.options import Device, Tokenizer, Weights, load_settings
from service.cli.terminal import say

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Output folder of `titok tokenize` or `titok sample`, or files of tokens in one of its formats."
    ),
]
Format = Annotated[
    Literal["webdataset", "folder", "npz"],
    typer.Option(
        "--format",
        help="webdataset: tars; folder: image files, in subfolders by class; npz: one file with `arr_0` uint8 [N, S, S, 3], "
        "as ADM's evaluator reads it.",
    ),
]
View = Annotated[
    int | None, typer.Option(min=0, help="Decode only the crops with this index; all by default.", show_default=False)
]


def detokenize(
    source: SourceArgument,
    dest: Destination,
    output: Format = "webdataset",
    image_format: ImageFormat = "png",
    quality: Quality = None,
    view: View = None,
    shard_images: ImageShard = 1_000,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    batch_size: BatchSize = 0,
    threads: Threads = 0,
    ray: Ray = None,
    ray_actors: RayActors = 0,
) -> None:
    """Decode the tokens of a dataset. Rerun the command to resume; the output is byte-identical.

    The tokenizer is the one that made the tokens, unless another is named, whose weights must then be the same.

    Examples:

        titok detokenize tokens/ images/ --format folder

        titok detokenize tokens/ images/ --view 0 --format npz --device cuda
    """
    from service.bulk.detokenization import DetokenizeJob
    from service.bulk.image_formats import ImageOptions
    from service.bulk.token_folders import open_token_source

    opened, folder = open_token_source(source, view=view)
    made_by = None if folder.tokenizer is None else folder.tokenizer.name
    job = DetokenizeJob(
        source=opened,
        destination=dest,
        tokenizer=tokenizer or made_by or load_settings().tokenizer,
        weights=weights,
        device=device,
        dtype=dtype,
        shard_images=shard_images,
        batch_size=batch_size,
        threads=threads,
        folder=folder,
        view=view,
        images=ImageOptions(output, f"image/{image_format}", quality, folder.classes),
    )
    result = run_bulk("detokenize", job, ray, ray_actors)
    say(f"{result.images} images decoded, {result.shards} shards in {dest}")
