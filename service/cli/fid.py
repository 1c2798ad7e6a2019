"""``titok fid``: FID, Inception Score, precision and recall of images on disk against a reference."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from models.data.splits import ALL
from service.bulk.entries import Entry, Position, Source
from service.bulk.errors import BrokenImage
from service.cli.options import CommandError, Device, Split
from service.cli.terminal import console

if TYPE_CHECKING:
    from models.arrays import Pixels

_HELP = "Folder of images, WebDataset or Parquet files, or .npz"
_BATCH = 32


def fid(
    images: Annotated[str, typer.Argument(help=f"{_HELP} (arr_0).")],
    reference: Annotated[str, typer.Argument(help=f"{_HELP} (arr_0, or the mu and sigma of ADM's).")],
    inception_weights: Annotated[Path, typer.Option(help="Inception weights or TorchScript.", dir_okay=False)],
    split: Split = None,
    size: Annotated[int, typer.Option(help="Crop other images to this size.", min=16)] = 256,
    device: Device = "auto",
    cache: Annotated[Path, typer.Option(help="Folder for features.", file_okay=False)] = Path("runs/cache"),
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.", dir_okay=False)] = None,
) -> None:
    """Measure FID, Inception Score, precision and recall of images on disk.

    Example:

        titok fid samples.npz VIRTUAL_imagenet256_labeled.npz --inception-weights inception.pth
    """
    from models.evaluation.inception import load_feature_network  # torch is slow to import
    from models.evaluation.npz_files import has_images, read_images
    from models.evaluation.published import Reference, extract, inspect_reference, published_figures, read_reference
    from models.evaluation.report import plain, published_table
    from models.runtime.device_names import select_device
    from service.bulk.sources import SourceOptions, open_source

    splits = {images: ALL, reference: split}
    opened = {
        name: None if name.endswith(".npz") else open_source(name, SourceOptions(split=chosen))
        for name, chosen in splits.items()
    }
    if opened[images] is None and not has_images(Path(images)):
        raise CommandError(f"{images} has statistics and no images: it can only be the reference")
    network = load_feature_network(inception_weights, select_device(device))
    if opened[reference] is None:
        inspect_reference(Path(reference), network)  # raises for a file that is no reference

    def batches(name: str) -> "Iterator[Pixels]":
        source = opened[name]
        found = read_images(Path(name)) if source is None else _decoded(source, size)
        return iter(track(found, f"features of {name}", console=console))

    features = extract(network, batches(images), folder=cache)
    if opened[reference] is None:
        compared = read_reference(Path(reference), network, folder=cache)
    else:
        compared = Reference.of(extract(network, batches(reference), folder=cache))
    figures = published_figures(features, compared, network)
    typer.echo(published_table({images: figures}))
    if output is not None:
        try:
            output.write_text(json.dumps(plain(figures), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write {output}: {error.strerror}") from None


def _decoded(source: Source, size: int) -> "Iterator[Pixels]":
    """All images of a source in batches uint8 [B, S, S, 3], S = ``size``, as the published evaluation crops them."""
    import numpy as np

    from models.data.decoding import decode_image

    def decode(entry: Entry) -> "Pixels":
        try:
            return decode_image(entry.read(), size)
        except (BrokenImage, ValueError) as error:
            raise CommandError(f"{source.name}: {entry.key}: {error}") from None

    entries = (entry for _, entry in source.entries(Position(0, 0)))
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(entries, _BATCH)):
            yield np.stack(list(pool.map(decode, batch)))
