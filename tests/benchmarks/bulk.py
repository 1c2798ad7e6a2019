"""How much of the bare model's speed ``titok tokenize`` keeps: ``python -m tests.benchmarks.bulk [IMAGES]``.

The same JPEG files, already of the model's size, through the whole command's work (reading, decoding, encoding, writing)
and through loops over the bare model, with one batch size: one loop over pixels that are in memory, one that decodes each
batch first. Loading the model counts in none of them. Medians of runs taken in turn, ratios within a turn, and
the processor time of the run that took least. Then ``--ray`` on a cluster of two nodes with a core each: from when
both actors have made a shard, and the whole of it, with the start of the actors.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import io
import math
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from service.bulk.crops import Crops
from service.bulk.run import Job, load_tokenizer_of, tokenize_source
from service.bulk.sources import open_source
from service.cpu_quota import usable_cores
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits
from tests.benchmarks.images import distinct_images

RUNS, RAY_SHARD = 7, 64


def measure(count: int, device: str, batch_size: int, folder: Path) -> None:
    """Prints a line for each way."""
    source = folder / "images.tar"
    asked = Job(
        source=open_source(str(_shard(source, 1, 8))),
        destination=folder / "tokens",
        tokenizer="titok-mini-32",
        weights=None,
        device=device,
        dtype="float32",
        format="webdataset",
        crops=Crops(),
        shard_images=10_000,
        batch_size=batch_size,
        threads=usable_cores(),
        max_pixels=40_000_000,
    )
    tokenizer, options = load_tokenizer_of(asked)
    _shard(source, count, tokenizer.image_size)
    asked = dataclasses.replace(asked, source=open_source(str(source)))
    files = [entry.read() for part in asked.source.parts for entry in part.entries(0)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])
    batches = range(0, count, options.batch_size)

    def bare() -> None:
        for first in batches:
            tokenizer.encode(pixels[first : first + options.batch_size])

    def bare_with_decoding() -> None:
        for first in batches:
            chosen = [decode_image(data, limits=MediaLimits()) for data in files[first : first + options.batch_size]]
            tokenizer.encode(np.stack([np.asarray(image.image) for image in chosen]))

    runs = iter(range(100))

    def command() -> None:
        tokenize_source(dataclasses.replace(asked, destination=folder / f"tokens-{next(runs)}"), tokenizer, options)

    ways: dict[str, Callable[[], None]] = {
        "bare model": bare,
        "bare model, decoding first": bare_with_decoding,
        "titok tokenize": command,
    }
    tokenizer.encode(pixels[: options.batch_size])
    rates: dict[str, list[float]] = {name: [] for name in ways}
    least = dict.fromkeys(ways, math.inf)
    for _ in range(RUNS):
        for name, way in ways.items():
            begun, used = time.perf_counter(), time.process_time()
            way()
            rates[name].append(count / (time.perf_counter() - begun))
            least[name] = min(least[name], (time.process_time() - used) / count)
    over = {name: float(np.median(np.divide(rates[name], rates["bare model"]))) for name in ways}
    rows = {name: (float(np.median(rates[name])), over[name]) for name in ways}
    if importlib.util.find_spec("ray") and tokenizer.device.type == "cpu":
        on_ray = _on_two_nodes(dataclasses.replace(asked, destination=folder / "tokens-ray", threads=0))
        for name, rate in zip(("--ray, two nodes", "--ray, with its start"), on_ray, strict=True):
            rows[name] = (rate, rate / rows["bare model"][0])
    print(f"{'':<28} {'images/s':>8} {'of bare':>8} {'CPU ms/image':>13} {'of bare':>8}")
    for name, (rate, share) in rows.items():
        line = f"{name:<28} {rate:8.1f} {share:8.3f}"
        if name in least:
            line += f" {1e3 * least[name]:13.2f} {least['bare model'] / least[name]:8.3f}"
        print(line)


def _on_two_nodes(asked: Job) -> tuple[float, float]:
    """Images a second once both actors are at work, and from beginning to end."""
    from service.bulk.on_ray import run_on_ray
    from tests.ray_cluster import two_nodes

    done: list[tuple[float, int]] = []
    with two_nodes():
        begun = time.perf_counter()
        run_on_ray(
            dataclasses.replace(asked, shard_images=RAY_SHARD),
            "auto",
            progress=lambda images, _: done.append((time.perf_counter(), images)),
        )
        ended = time.perf_counter()
    images = [count for _, count in done]
    (second, _), (last, _) = done[1], done[-1]
    return sum(images[2:]) / (last - second), sum(images) / (ended - begun)


def _shard(path: Path, count: int, size: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(distinct_images(count, size) if size > 8 else [np.zeros((8, 8, 3), np.uint8)]):
            written = io.BytesIO()
            Image.fromarray(image).save(written, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = written.tell()
            archive.addfile(member, io.BytesIO(written.getvalue()))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int, nargs="?", default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(given.images, given.device, given.batch_size, Path(folder))
