"""Throughput of the bare models: ``make bench-models``.

Encode, decode and generate of the bundled checkpoint and of published shapes with synthetic weights, at batch sizes 1 and
8, in float32 and bfloat16, and the share of token ids that are equal in both. ``plain`` is the network without this
project's optimisations: all positions in the last blocks, unfused attention, convolutions over the whole batch,
contiguous, float32.

Each figure is the best of the runs that fit into a time budget; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from models import Generator, Tokenizer, load_generator, load_tokenizer
from models.checkpoints.bundled import DEFAULT_VARIANT
from models.checkpoints.loading import Checkpoint, load_strictly
from models.checkpoints.registry import GENERATORS, TOKENIZERS
from models.networks.attention import attend
from models.networks.generator import GeneratorConfig, build_generator
from models.networks.titok import Block, TiTok, TiTokConfig
from models.preprocess import eval_crop
from models.runtime.selection import TORCH, Runtime

GOLDEN = Path(__file__).parents[1] / "golden"
OUTPUT = Path(__file__).parents[2] / "docs" / "benchmarks"
MANIFESTS = {"titok-s-128": "titok_s128", "titok-b-64": "titok_b64", "titok-l-32": "titok_l32"}
BATCHES = (1, 8)
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Row:
    """One figure: images a second."""

    model: str
    operation: str
    dtype: str
    batch: int
    images_per_second: float


def images_of(size: int, count: int) -> np.ndarray:
    """Crops of photographs, uint8 [count, size, size, 3]."""
    from PIL import Image
    from skimage import data

    photographs = [Image.fromarray(image()) for image in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    crops = []
    for index in range(count):
        photograph = photographs[index % 4]
        shift = 17 * (index // 4)
        crops.append(
            eval_crop(photograph.crop((shift, shift, photograph.width - shift, photograph.height - shift)), size)
        )
    return np.stack(crops)


def tokenizer(name: str, dtype: str, device: str, runtime: Runtime = TORCH) -> Tokenizer:
    if name == DEFAULT_VARIANT:
        return load_tokenizer(name, device=device, dtype=dtype, runtime=runtime.name)
    config = TOKENIZERS[name].config
    assert isinstance(config, TiTokConfig)
    with torch.device("meta"):
        network = TiTok(config)
    _fill(network, MANIFESTS[name])
    return Tokenizer(
        network,
        name=name,
        digest="0" * 12,
        source="synthetic",
        device=torch.device(device),
        dtype=dtype,
        runtime=runtime,
    )


def generator(name: str, dtype: str, device: str) -> Generator:
    if name == DEFAULT_VARIANT:
        return load_generator(name, device=device, dtype=dtype)
    variant = GENERATORS[name]
    assert isinstance(variant.config, GeneratorConfig)
    with torch.device("meta"):
        network = build_generator(variant.config)
    _fill(network, f"generator_{MANIFESTS[name]}")
    return Generator(
        network,
        variant=variant,
        names=(),
        digest="0" * 12,
        source="synthetic",
        device=torch.device(device),
        dtype=dtype,
    )


def _fill(network: torch.nn.Module, manifest: str) -> None:
    load_strictly(network, Checkpoint(tensors=synthetic_weights(manifest), config=None, source="synthetic"))


@lru_cache(maxsize=2)  # of a tokenizer and its generator: gigabytes
def synthetic_weights(manifest: str) -> dict[str, torch.Tensor]:
    """The golden cases' weights of a published shape, by tensor name. They take up to 15 seconds to make."""
    sys.path.insert(0, str(GOLDEN))
    import weights

    content = json.loads((GOLDEN / "manifests" / f"{manifest}.json").read_text())
    return {key: torch.from_numpy(value) for key, value in weights.state_dict(content).items()}


@contextmanager
def plain_networks() -> Iterator[None]:
    """Replaces the optimised parts of the networks by plain ones, as a baseline."""

    def whole_block(block: Block, x: torch.Tensor, keep: slice = slice(None)) -> torch.Tensor:
        x = x + block.attn(block.ln_1(x), slice(None))
        x = x + block.mlp(block.ln_2(x))
        return x[:, keep]

    def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *, fused: bool) -> torch.Tensor:
        return attend(q, k, v, heads, fused=False)

    def whole_batch(network: TiTok, logits: torch.Tensor) -> torch.Tensor:
        weights, grid = network.pixel_quantize.embedding.weight, network.decoder.grid
        mixture = (logits.softmax(dim=-1) @ weights).transpose(1, 2)
        return network.pixel_decoder(mixture.reshape(len(logits), -1, grid, grid).contiguous())

    with (
        mock.patch.object(TiTok, "mix", whole_batch),
        mock.patch.object(Block, "forward", whole_block),
        mock.patch("models.networks.titok.attend", written_out),
        mock.patch("models.networks.titok.to_channels_last", return_value=None),
    ):
        yield


def rate(run: Callable[[], object], images: int, budget: float) -> float:
    """Images per second of the best run within ``budget`` seconds; the first run counts only if there is no other."""

    def once() -> float:
        begun = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    started, best = time.perf_counter(), once()
    if best < budget:
        best = once()
    while time.perf_counter() - started < budget:
        best = min(best, once())
    return images / best


class Measurement:
    """Rows of all models; ``agreement`` is the share of ids that are equal in bfloat16 and float32, by model."""

    def __init__(self, device: str, budget: float) -> None:
        self.device = device
        self.budget = budget
        self.rows: list[Row] = []
        self.agreement: dict[str, float] = {}

    def measure(self, name: str) -> None:
        """Measures one model in all number formats."""
        print(name, flush=True)
        ids = {dtype: self._tokenizer(name, dtype, BATCHES) for dtype in DTYPES}
        self.agreement[name] = float((ids["float32"] == ids["bfloat16"]).float().mean())
        if name == "titok-s-128":
            with plain_networks():
                self._tokenizer(name, "float32", (8,), suffix=" (plain)")
        for dtype in DTYPES:
            self._generator(name, dtype, steps=8)

    def _tokenizer(self, name: str, dtype: str, batches: Sequence[int], *, suffix: str = "") -> torch.Tensor:
        """Measures encode and decode; returns the ids of the images."""
        loaded = tokenizer(name, dtype, self.device)
        images = images_of(loaded.image_size, 32 if name == DEFAULT_VARIANT else 8)
        ids = loaded.encode(images)
        for batch in batches:
            self._add(name, f"encode{suffix}", dtype, batch, partial(loaded.encode, images[:batch]))
            self._add(name, f"decode{suffix}", dtype, batch, partial(loaded.decode, ids[:batch]))
        return ids

    def _generator(self, name: str, dtype: str, *, steps: int) -> None:
        loaded = generator(name, dtype, self.device)
        for batch in BATCHES:
            labels = list(range(batch))
            run = partial(loaded.generate, labels, seeds=labels, preset="published", steps=steps)
            self._add(name, f"generate, {steps} steps", dtype, batch, run)

    def _add(self, name: str, operation: str, dtype: str, batch: int, run: Callable[[], object]) -> None:
        row = Row(name, operation, dtype, batch, rate(run, batch, self.budget))
        self.rows.append(row)
        print(f"  {operation:<16} {dtype:<9} batch {batch}: {row.images_per_second:8.2f} images/s", flush=True)


def processor() -> str:
    """The processor's name and its vector instructions."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {flag}" in text]
    return f"{model or platform.processor()} ({', '.join(flags[:2])}), {torch.get_num_threads()} threads"


def table(rows: Sequence[Row], agreement: dict[str, float]) -> str:
    """The results in Markdown."""
    lines = [
        "| model | operation | float32, 1 | float32, 8 | bfloat16, 1 | bfloat16, 8 | bfloat16 / float32 at 8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, operation in dict.fromkeys((row.model, row.operation) for row in rows):
        cells = {
            (row.dtype, row.batch): row.images_per_second
            for row in rows
            if (row.model, row.operation) == (model, operation)
        }
        shown = [
            f"{cells[key]:.2f}" if (key := (dtype, batch)) in cells else "" for dtype in DTYPES for batch in BATCHES
        ]
        low, high = cells.get(("bfloat16", 8)), cells.get(("float32", 8))
        shown.append(f"{low / high:.2f}" if low and high else "")
        lines.append(f"| {model} | {operation} | {' | '.join(shown)} |")
    lines += [
        "",
        "Token ids equal in bfloat16 and float32: "
        + ", ".join(f"{name} {100 * share:.1f} %" for name, share in agreement.items())
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the table and writes it, with JSON, to docs/benchmarks."""
    parser = argparse.ArgumentParser(description="Throughput of the bare models.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=[DEFAULT_VARIANT, "titok-s-128", "titok-b-64", "titok-l-32"])
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each figure")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    started = time.perf_counter()
    measurement = Measurement(arguments.device, arguments.budget)
    for name in arguments.models:
        measurement.measure(name)
    rows, agreement = measurement.rows, measurement.agreement
    text = table(rows, agreement)
    head = f"Images a second on {processor()}, torch {torch.__version__}."
    print(f"\n{head}\n\n{text}\n\n{time.perf_counter() - started:.0f} s")
    arguments.output.mkdir(parents=True, exist_ok=True)
    kind = arguments.device.partition(":")[0]
    document = {
        "processor": processor(),
        "torch": torch.__version__,
        "rows": [asdict(row) for row in rows],
        "ids_equal_in_bfloat16_and_float32": agreement,
    }
    (arguments.output / f"models-{kind}.json").write_text(json.dumps(document, indent=1) + "\n")
    (arguments.output / f"models-{kind}.md").write_text(f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
