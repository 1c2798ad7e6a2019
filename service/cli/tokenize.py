"""``titok tokenize``: a whole data set made into tokens."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli.images import Tokenizer, Weights
from service.settings import Settings

__all__ = ["SOME_BROKEN", "progress_bar", "tokenize"]

SOME_BROKEN = 3
"""Exit code: all is written, and some images could not be used."""


class Format(StrEnum):
    """How tokens are written."""

    JSONL = "jsonl"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"
    NPY = "npy"
    BIN = "bin"


class CropChoice(StrEnum):
    """Which squares of an image are tokenized."""

    CENTRE = "centre"
    TEN = "ten"


def tokenize(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of images (its folders are classes), WebDataset tars or Parquet files: a folder, a file, a "
            "pattern with * or {000..099}, here or at a URL such as s3://bucket/set."
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="Folder for the tokens: a new one, or one to go on with.")],
    output: Annotated[Format, typer.Option("--format", help="How tokens are written.")] = Format.PARQUET,
    crops: Annotated[
        CropChoice, typer.Option(help="centre: as the service sees an image; ten: the published ten crops.")
    ] = CropChoice.CENTRE,
    flip: Annotated[bool, typer.Option("--flip", help="Also the mirror image of the centre square.")] = False,
    shard_images: Annotated[int, typer.Option(min=1, help="Images of the source for each file.")] = 10_000,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, tf32, tf32x3, float16 or bfloat16.")] = "float32",
    batch_size: Annotated[
        int, typer.Option(min=0, help="Squares of a device batch; 0: 16 on a CPU, 128 elsewhere.")
    ] = 0,
    decode_threads: Annotated[
        int, typer.Option(min=0, help="Threads that decode images, and on a CPU encode them; 0: one a core.")
    ] = 0,
    image_column: Annotated[str | None, typer.Option(help="Of Parquet files; image by default.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of Parquet files; label by default.")] = None,
    key_column: Annotated[str | None, typer.Option(help="Of Parquet files; key or __key__ by default.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="On a Ray cluster: its address, auto for the one this machine is part of, local for one of its own.",
        ),
    ] = None,
    ray_actors: Annotated[
        int, typer.Option(min=0, help="Tokenizers on the cluster; 0: one a GPU, or one a node without any.")
    ] = 0,
) -> None:
    """Make a whole data set into tokens. Killed, it goes on with the same command, to the same bytes.

    Broken images are left out and listed in DEST/errors.jsonl: exit code 3 says that there are some.
    """
    from service.bulk.crops import Crops
    from service.bulk.run import Job, run_job  # torch is slow to import
    from service.bulk.sources import open_source

    settings = Settings()
    job = Job(
        source=open_source(source, image_column=image_column, label_column=label_column, key_column=key_column),
        destination=dest,
        tokenizer=tokenizer or settings.tokenizer,
        weights=weights,
        device=device,
        dtype=dtype,
        format=output.value,
        crops=Crops(crops.value, flip),
        shard_images=shard_images,
        batch_size=batch_size,
        threads=decode_threads,
        max_pixels=settings.max_pixels,
    )
    console = Console(stderr=True)
    with progress_bar(console) as progress:
        task = progress.add_task("tokenize", total=job.source.total, broken="")
        broken = 0

        def show(done: int, left_out: int) -> None:
            nonlocal broken
            broken += left_out
            progress.update(task, advance=done, broken=f"{broken} left out" if broken else "")

        if ray is None:
            result = run_job(job, progress=show)
        else:
            from service.bulk.on_ray import run_on_ray

            result = run_on_ray(job, ray, actors=ray_actors, progress=show)
    console.print(
        f"{result.images} images tokenized, {result.broken} left out"
        + (f" (see {dest / 'errors.jsonl'})" if result.broken else "")
        + f", {result.shards} shards in {dest}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(SOME_BROKEN if result.broken else 0)


def progress_bar(console: Console) -> Progress:
    """Shows images done and left, with a remark in the field ``broken``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[broken]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
