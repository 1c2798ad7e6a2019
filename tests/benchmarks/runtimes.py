"""OpenVINO as the CPU runtime: the same ids as PyTorch's, and its rates, as ratios of calls in turn within one run.

Run ``python -m tests.benchmarks.runtimes`` on an otherwise idle machine (3 minutes), or with ``--data DIR`` to compare the
ids of all validation photographs in DIR and of 500 synthetic images, in batches of random sizes (5 minutes more). The exit
status is 1 if an id differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models import Tokenizer, load_tokenizer
from models.checkpoints.bundled import DEFAULT_VARIANT
from models.data.datasets import load_dataset
from models.networks.end_to_end import ImageToIds, ImageToLatents, TokensToImage
from models.runtime.cpu_threads import torch_threads
from models.runtime.openvino_function import openvino, traced_graph
from models.runtime.precision import has_fast_bfloat16
from models.runtime.selection import Runtime
from tests.benchmarks.images import distinct_images
from tests.benchmarks.models import processor, tokenizer

__all__: list[str] = []

SYNTHETIC, LARGEST_BATCH, PAIRS = 500, 32, 15
GOALS = {"shipped": 0.95, "one image": 0.9, "over eager": 1.05}

Run = Callable[[], object]


def direct(module: nn.Module, example: torch.Tensor, precision: str) -> Callable[[np.ndarray], object]:
    """A module compiled by OpenVINO with one stream on all threads, and called without any code around it."""
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(traced_graph(module, example), "CPU", options)
    return lambda batch: compiled([batch])


def gain(ours: Run, other: Run) -> float:
    """The rate of ``ours`` over that of ``other``: the median of pairs of calls in turn."""
    for run in (ours, other):
        run()
    ratios = []
    for _ in range(PAIRS):
        times = []
        for run in (ours, other):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def shipped_rates() -> Iterator[tuple[str, float, float]]:
    """The shipped checkpoint, as loaded by the library, over OpenVINO called directly on the same network."""
    made, exact = load_tokenizer(DEFAULT_VARIANT, dtype="auto", runtime="auto"), load_tokenizer(DEFAULT_VARIANT)
    made.tune()
    print(f"selected: {made.runtimes}")
    low = "bf16" if has_fast_bfloat16(made.device) else "f32"
    encode = direct(ImageToIds(exact.network), torch.zeros(2, *[exact.image_size] * 2, 3, dtype=torch.uint8), "f32")
    decode = direct(TokensToImage(exact.network), torch.zeros(2, exact.num_tokens, dtype=torch.int64), low)
    for batch, goal in ((16, GOALS["shipped"]), (1, GOALS["one image"])):
        images = distinct_images(batch, made.image_size)
        ids = made.encode(images).numpy()
        rate = gain(partial(made.encode, images), partial(encode, images))
        yield f"encode float32, batch {batch}", rate, goal
        yield f"decode {low}, batch {batch}", gain(partial(made.decode, ids), partial(decode, ids)), goal


def published_rates(name: str = "titok-s-128", batch: int = 8) -> Iterator[tuple[str, float, float]]:
    """A published network with random weights: over PyTorch's network called directly, and over OpenVINO."""
    made = tokenizer(name, "float32", "cpu", Runtime(name="auto"))
    made.tune(batch)
    print(f"selected: {made.runtimes}")
    images = distinct_images(batch, made.image_size)
    pixels, network = torch.from_numpy(images), ImageToLatents(made.network)
    encode = direct(ImageToIds(made.network), torch.zeros(2, *images.shape[1:], dtype=torch.uint8), "f32")

    @torch.inference_mode()
    def eager() -> None:
        network(pixels)

    yield f"{name} encode over eager PyTorch", gain(lambda: made.encode(images), eager), GOALS["over eager"]
    yield f"{name} encode over OpenVINO", gain(lambda: made.encode(images), lambda: encode(images)), GOALS["shipped"]


def different_ids(made: Tokenizer, reference: Tokenizer, images: np.ndarray) -> int:
    """How many ids differ from PyTorch's of one image after another, in batches of random sizes."""
    random, first, different = np.random.default_rng(0), 0, 0
    while first < len(images):
        batch = images[first : first + random.integers(1, LARGEST_BATCH + 1)]
        with torch_threads(1):
            expected = torch.cat([reference.encode(image[None]) for image in batch])
        different += int((made.encode(batch) != expected).sum())
        first += len(batch)
    return different


def compare_ids(data: Path) -> int:
    """Prints how many ids differ, of photographs and of synthetic images, and returns the sum."""
    made = load_tokenizer(DEFAULT_VARIANT, runtime="openvino")
    reference = load_tokenizer(DEFAULT_VARIANT, runtime="torch")
    made.tune(LARGEST_BATCH)
    photographs = load_dataset(data, "val", size=made.image_size, cache=Path("runs/cache"))
    images = {
        "photographs": np.asarray(photographs.images),
        "synthetic images": distinct_images(SYNTHETIC, made.image_size),
    }
    total = 0
    for kind, of_kind in images.items():
        different = different_ids(made, reference, of_kind)
        total += different
        compared = len(of_kind) * made.num_tokens
        print(
            f"{len(of_kind)} {kind}: {different} of {compared} ids differ (tolerance {made.tolerance:.1e})", flush=True
        )
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="dataset whose validation photographs are compared")
    parser.add_argument("--no-rates", action="store_true", help="compare ids only")
    arguments = parser.parse_args()
    print(f"{processor()}, torch {torch.__version__}, OpenVINO {openvino.__version__}")
    if not arguments.no_rates:
        for name, ratio, goal in chain(shipped_rates(), published_rates()):
            print(f"| {name} | {ratio:.2f} | >= {goal} |", flush=True)
    return int(arguments.data is not None and compare_ids(arguments.data) > 0)


if __name__ == "__main__":
    sys.exit(main())
