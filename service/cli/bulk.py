"""Options of the bulk commands, and their run on this machine or on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.terminal import image_progress

if TYPE_CHECKING:
    from service.bulk.destination import Result
    from service.bulk.job import Job

Destination = Annotated[Path, typer.Argument(help="Output folder; an interrupted run in it is resumed.")]
Dtype = Annotated[str, typer.Option(help="float32, tf32, tf32x3, float16 or bfloat16.")]
BatchSize = Annotated[int, typer.Option(min=0, help="Images per batch; 0: 16 on a CPU, 128 on a GPU.")]
Threads = Annotated[
    int, typer.Option(min=0, help="Threads for image files (on a CPU also for the model); 0: one per core.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run on a Ray cluster: its address, 'auto' for the cluster of this machine, or 'local' to start one.",
    ),
]
RayActors = Annotated[
    int, typer.Option(min=0, help="Models on the cluster; 0: one per GPU, or one per node without GPUs.")
]

ImageFormat = Annotated[
    Literal["png", "jpeg", "webp"],
    typer.Option("--image-format", help="Format of image files; npz contains pixels."),
]
Quality = Annotated[
    int | None, typer.Option(min=1, max=100, help="Quality of JPEG and WebP files, by default 90.", show_default=False)
]
ImageShard = Annotated[int, typer.Option("--shard-images", min=1, help="Images per shard, which is held in memory.")]


def run_bulk(description: str, job: Job[Any], ray: str | None, ray_actors: int) -> Result:
    """Runs a job with a progress bar, on a Ray cluster if its address is given."""
    with image_progress(description, job.source.total) as progress:
        if ray is None:
            from service.bulk.run import run_job

            return run_job(job, progress=progress)
        from service.bulk.on_ray import run_on_ray

        return run_on_ray(job, ray, actors=ray_actors, progress=progress)
