"""Latents as ``.npy`` files, for ``titok encode --latents`` and ``titok decode``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.options import CommandError

if TYPE_CHECKING:
    from service.cli.local_models import LocalModels
    from service.client import TiTokClient
    from service.client.results import Latents

LatentsFile = Annotated[
    Path | None,
    typer.Option(
        "--latents",
        metavar="FILE.npy",
        help="Write vectors instead, an array [images, K, C]: the tokens of a VAE, else those before quantization.",
    ),
]
LatentsDtype = Annotated[Literal["float32", "float16"], typer.Option(help="Number format of --latents.")]
LatentsSeed = Annotated[
    int | None,
    typer.Option(min=0, help="With --latents: sample a VAE's posterior, image i by seed + i; by default its mean."),
]


def encode_latents(
    models: LocalModels | TiTokClient, images: Sequence[bytes], dtype: Literal["float32", "float16"], seed: int | None
) -> bytes:
    """The ``.npy`` file of the latents of images, [images, K, C]."""
    import numpy as np  # not for every command

    from models.codes.latents import to_npy

    return to_npy(np.stack([each.array() for each in _encode(models, images, dtype, seed)]))


def encode_one(models: LocalModels | TiTokClient, image: bytes) -> Latents:
    """The latents of an image, of a VAE the posterior's mean."""
    return _encode(models, [image], "float32", None)[0]


def _encode(
    models: LocalModels | TiTokClient, images: Sequence[bytes], dtype: Literal["float32", "float16"], seed: int | None
) -> Sequence[Latents]:
    from service.client import TiTokClient

    if isinstance(models, TiTokClient):
        return models.encode(images, latents=True, dtype=dtype, seed=seed)
    seeds = [None if seed is None else seed + index for index in range(len(images))]
    return [models.latents(image, dtype=dtype, seed=each) for image, each in zip(images, seeds, strict=True)]


def read_latents(path: Path) -> Latents:
    """The latents of one image, [K, C] or [1, K, C], from a ``.npy`` file. Raises ``CommandError``."""
    import numpy as np

    from service.client.results import Latents

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
    if not isinstance(array, np.ndarray) or str(array.dtype) not in ("float32", "float16"):
        raise CommandError(f"{path} does not hold an array of float32 or float16")
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2:
        raise CommandError(f"{path} holds {list(array.shape)}; the latents [K, C] of one image are expected")
    return Latents(data=array.tobytes(), shape=array.shape, dtype=str(array.dtype))
