"""Speed of lower precision, and agreement of its ids with float32, in the whole encoder or in its first blocks only.

A lower precision in early blocks changes ids too, since later blocks see the rounded values; the question is how many.
TF32 in three passes (CUDA) rounds about as float32 does. Every row is relative to float32 in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from models import Tokenizer
from models.checkpoints.bundled import DEFAULT_VARIANT
from models.networks.titok import TiTok
from models.runtime.cuda_graphs import CudaRecorder
from models.runtime.precision import FORMATS, has_fast_bfloat16
from tests.benchmarks.batch_invariance import formats_of
from tests.benchmarks.images import distinct_images
from tests.benchmarks.models import OUTPUT, processor, rate, tokenizer

__all__ = ["Agreement", "compare_precisions", "early_blocks", "table"]


@dataclass(frozen=True)
class Agreement:
    """One setting: images per second at a batch size, and the shares of ids and images that equal float32's."""

    model: str
    setting: str
    batch: int
    images_per_second: float
    speed: float
    images: int
    equal_ids: float
    equal_images: float


def early_blocks(name: str, dtype: str, count: int, device: str) -> Tokenizer:
    """A float32 tokenizer whose first ``count`` encoder blocks run in another format's matrices."""
    model = tokenizer(name, "float32", device)
    network = model.network
    assert isinstance(network, TiTok)
    for block in list(network.encoder.transformer)[:count]:
        block.set_compute_dtype(FORMATS[dtype].dtype)  # type: ignore[operator]
    return model


def compare_precisions(
    name: str, device: str, *, images: int, batch: int, budget: float, early: Sequence[int] | None = None
) -> list[Agreement]:
    """Float32 first, then every format of the device, then its half precisions in the first blocks (``early`` of them; by
    default one, two, a quarter and a half).
    """
    exact = tokenizer(name, "float32", device)
    network = exact.network
    assert isinstance(network, TiTok)
    layers = len(network.encoder.transformer)
    pixels = distinct_images(images, exact.image_size)
    expected = torch.cat([exact.encode(pixels[first : first + batch]) for first in range(0, images, batch)])
    rows: list[Agreement] = []

    def measure(setting: str, model: Tokenizer) -> None:
        if model.device.type == "cuda":
            model.encoder.record([batch], CudaRecorder(model.device))
        ids = torch.cat([model.encode(pixels[first : first + batch]) for first in range(0, images, batch)])
        speed = rate(lambda: model.encode(pixels[:batch]), batch, budget)
        rows.append(
            Agreement(
                model=name,
                setting=setting,
                batch=batch,
                images_per_second=speed,
                speed=speed / (rows[0].images_per_second if rows else speed),
                images=images,
                equal_ids=float((ids == expected).float().mean()),
                equal_images=float((ids == expected).all(1).float().mean()),
            )
        )
        print(f"  {name}, {setting}: {speed:.2f} images/s, {100 * rows[-1].equal_ids:.3f} % of ids equal", flush=True)

    measure("float32", exact)
    del exact, network
    for dtype in formats_of(device)[1:]:
        measure(dtype, tokenizer(name, dtype, device))
    halves = [dtype for dtype in formats_of(device) if FORMATS[dtype].dtype is not torch.float32]
    for dtype in halves:
        for count in early if early is not None else sorted({1, 2, layers // 4, layers // 2}):
            measure(f"{dtype} in the first {count} of {layers} blocks", early_blocks(name, dtype, count, device))
    return rows


def fastest_equal(rows: Sequence[Agreement]) -> Agreement:
    """The fastest setting whose ids all equal float32's, possibly float32 itself."""
    return max((row for row in rows if row.equal_ids == 1.0), key=lambda row: row.images_per_second)


def table(rows: Sequence[Agreement]) -> str:
    """The results in Markdown."""
    lines = [
        "| model | encoder | batch | images/s | / float32 | ids equal to float32's | images with all ids equal |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.setting} | {row.batch} | {row.images_per_second:.1f} | {row.speed:.2f} | "
        f"{100 * row.equal_ids:.3f} % | {100 * row.equal_images:.1f} % of {row.images} |"
        for row in rows
    ]
    for model in dict.fromkeys(row.model for row in rows):
        best = fastest_equal([row for row in rows if row.model == model])
        lines += ["", f"{model}: the fastest with float32's ids is {best.setting}, {best.speed:.2f} times as fast."]
    return "\n".join(lines)


def main() -> None:
    """Prints the table and writes it, with JSON, to docs/benchmarks."""
    parser = argparse.ArgumentParser(description="Speed of lower precision, and its agreement with float32.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=[DEFAULT_VARIANT])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--early", type=int, nargs="+", default=None, help="how many first blocks run in half precision"
    )
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each figure")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    if not has_fast_bfloat16(torch.device(arguments.device)):
        print("this processor has no bfloat16 arithmetic: agreement is meaningful, speed is not")
    rows = [
        row
        for name in arguments.models
        for row in compare_precisions(
            name,
            arguments.device,
            images=arguments.images,
            batch=arguments.batch,
            budget=arguments.budget,
            early=arguments.early,
        )
    ]
    head = f"Encoders on {processor()}, torch {torch.__version__}."
    print(f"\n{head}\n\n{table(rows)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"precision-{arguments.device.partition(':')[0]}"
    document = {"processor": processor(), "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"{head}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
