"""Throughput of bulk commands relative to the bare model: ``python -m tests.benchmarks.bulk [COMMAND] [IMAGES]``.

``tokenize``: the same JPEG files of the model's size go through the whole command (reading, decoding, encoding, writing) and
through two loops over the bare model with the same batch size: over pixels in memory, and with decoding before each batch.
Then ``--ray`` on a cluster of two nodes with one core each: after both actors have written a shard, and in total, including
the start of the actors. ``detokenize``: the same tokens go through the whole command in each format (reading, decoding,
encoding PNG, writing) and through a loop over the bare decoder with the same batch size.

Loading the model is not measured. Results are medians of alternating runs, ratios within a round, and the least processor
time.
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
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from models import Tokenizer
from service.bulk.crops import Crops
from service.bulk.detokenization import Detokenization, DetokenizeJob
from service.bulk.image_formats import FORMATS, ImageOptions
from service.bulk.run import run_task
from service.bulk.sources import open_source
from service.bulk.token_folders import open_token_source
from service.bulk.tokenization import Tokenization, TokenizeJob
from service.cpu_quota import usable_cores
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits
from tests.benchmarks.images import distinct_images

RUNS, RAY_SHARD = 7, 64


def measure_tokenize(count: int, device: str, batch_size: int, folder: Path) -> None:
    """Prints a line for each method."""
    job, tokenizer = _prepare(count, device, batch_size, folder)
    rows, cpu = _alternate(_methods(job, tokenizer), count)
    if importlib.util.find_spec("ray") and tokenizer.device.type == "cpu":
        on_ray = _on_two_nodes(dataclasses.replace(job, destination=folder / "tokens-ray", threads=0))
        for name, rate in zip(("--ray, two nodes", "--ray, including start-up"), on_ray, strict=True):
            rows[name] = (rate, rate / rows["bare model"][0])
    _print(rows, cpu)


def measure_detokenize(count: int, device: str, batch_size: int, folder: Path) -> None:
    """Prints a line for the bare decoder, and for each format of images."""
    job, tokenizer = _prepare(count, device, batch_size, folder)
    run_task(Tokenization(job, tokenizer))
    source, tokens = open_token_source(str(job.destination))
    plain = DetokenizeJob(
        source=source,
        destination=folder / "images",
        tokenizer=job.tokenizer,
        weights=None,
        device=device,
        dtype=job.dtype,
        shard_images=1_000,
        batch_size=batch_size,
        threads=job.threads,
        folder=tokens,
        view=None,
        images=ImageOptions("webdataset"),
    )
    loaded = plain.load()
    batches = [entry.read() for part in source.parts for entry in part.entries(0)]
    ids = np.stack(batches).astype(np.int64)
    runs = iter(range(100))

    def bare() -> None:
        for first in range(0, count, loaded.job.batch_size):
            loaded.tokenizer.decode(ids[first : first + loaded.job.batch_size])

    def command(format_name: str) -> None:
        changes = {"destination": folder / f"images-{next(runs)}", "images": ImageOptions(format_name)}
        run_task(Detokenization(dataclasses.replace(loaded.job, **changes), loaded.tokenizer))

    formats = {f"titok detokenize, {name}": partial(command, name) for name in FORMATS}
    _print(*_alternate({"bare model": bare, **formats}, count))


Rates = dict[str, tuple[float, float]]
"""Images a second, and relative to the bare model, of each method."""


def _alternate(methods: dict[str, Callable[[], None]], count: int) -> tuple[Rates, dict[str, float]]:
    """Rates, and the least processor time per image in seconds."""
    rates: dict[str, list[float]] = {name: [] for name in methods}
    cpu = dict.fromkeys(methods, math.inf)
    for _ in range(RUNS):
        for name, method in methods.items():
            started, used = time.perf_counter(), time.process_time()
            method()
            rates[name].append(count / (time.perf_counter() - started))
            cpu[name] = min(cpu[name], (time.process_time() - used) / count)
    rows = {
        name: (float(np.median(values)), float(np.median(np.divide(values, rates["bare model"]))))
        for name, values in rates.items()
    }
    return rows, cpu


def _print(rows: Rates, cpu: dict[str, float]) -> None:
    print(f"{'':<28} {'images/s':>8} {'of bare':>8} {'CPU ms/image':>13} {'of bare':>8}")
    for name, (rate, share) in rows.items():
        line = f"{name:<28} {rate:8.1f} {share:8.3f}"
        if name in cpu:
            line += f" {1e3 * cpu[name]:13.2f} {cpu['bare model'] / cpu[name]:8.3f}"
        print(line)


def _prepare(count: int, device: str, batch_size: int, folder: Path) -> tuple[TokenizeJob, Tokenizer]:
    """A job over ``count`` images of the model's size, and the loaded model."""
    source = folder / "images.tar"
    job = TokenizeJob(
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
    loaded = job.load()
    _shard(source, count, loaded.tokenizer.image_size)
    return dataclasses.replace(loaded.job, source=open_source(str(source))), loaded.tokenizer


def _methods(job: TokenizeJob, tokenizer: Tokenizer) -> dict[str, Callable[[], None]]:
    """The bare model on pixels in memory, the same with decoding, and the whole command; the model is warmed up."""
    files = [entry.read() for part in job.source.parts for entry in part.entries(0)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])
    batches = range(0, len(files), job.batch_size)
    runs = iter(range(100))

    def bare() -> None:
        for first in batches:
            tokenizer.encode(pixels[first : first + job.batch_size])

    def bare_with_decoding() -> None:
        for first in batches:
            chosen = [decode_image(data, limits=MediaLimits()) for data in files[first : first + job.batch_size]]
            tokenizer.encode(np.stack([np.asarray(image.image) for image in chosen]))

    def command() -> None:
        folder = job.destination.with_name(f"tokens-{next(runs)}")
        run_task(Tokenization(dataclasses.replace(job, destination=folder), tokenizer))

    tokenizer.encode(pixels[: job.batch_size])
    return {"bare model": bare, "bare model, decoding first": bare_with_decoding, "titok tokenize": command}


def _on_two_nodes(job: TokenizeJob) -> tuple[float, float]:
    """Images per second after both actors have written a shard, and in total."""
    from service.bulk.on_ray import run_on_ray
    from tests.ray_cluster import two_nodes

    done: list[tuple[float, int]] = []
    with two_nodes():
        started = time.perf_counter()
        run_on_ray(
            dataclasses.replace(job, shard_images=RAY_SHARD),
            "auto",
            progress=lambda images, _: done.append((time.perf_counter(), images)),
        )
        ended = time.perf_counter()
    images = [count for _, count in done]
    (second, _), (last, _) = done[1], done[-1]
    return sum(images[2:]) / (last - second), sum(images) / (ended - started)


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
    parser.add_argument("command", choices=("tokenize", "detokenize"), nargs="?", default="tokenize")
    parser.add_argument("images", type=int, nargs="?", default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_tokenize if given.command == "tokenize" else measure_detokenize
        measure(given.images, given.device, given.batch_size, Path(folder))
