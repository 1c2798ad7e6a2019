"""Batch invariance: how many token ids depend on the batch that an image is encoded in.

Many images are encoded one by one, and then in random batches of every size that is served (powers of two, which a CUDA
device records as graphs and pads to), in each number format. In float32, the default format, no id may differ: the exit
status is 1 otherwise. There an image whose codes are nearly tied is encoded again unbatched; ``re-encoded`` counts those.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import Tokenizer
from models.checkpoints.bundled import DEFAULT_VARIANT
from models.runtime.cuda_graphs import CudaRecorder, GraphedFunction
from models.runtime.precision import FORMATS
from tests.benchmarks.images import distinct_images
from tests.benchmarks.models import OUTPUT, processor, tokenizer

__all__ = ["BatchInvariance", "compare", "formats_of", "table"]

SIZES = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class BatchInvariance:
    """Ids of images in batches of ``batch`` compared with those of the same images encoded one by one."""

    model: str
    dtype: str
    batch: int
    images: int
    ids: int
    different_ids: int
    different_images: int
    re_encoded: int
    tolerance: float

    @property
    def share(self) -> float:
        """Share of ids that differ."""
        return self.different_ids / self.ids


class _CountingEncoder:
    """Counts the calls of an encoder with a single image, without those in the threads that share a batch on a CPU."""

    def __init__(self, function: GraphedFunction) -> None:
        self._function = function
        self._thread = threading.get_ident()
        self.singles = 0

    @property
    def sizes(self) -> list[int]:
        """See ``GraphedFunction``."""
        return self._function.sizes

    def __call__(self, inputs: torch.Tensor, *static: int) -> tuple[torch.Tensor, ...]:
        self.singles += len(inputs) == 1 and threading.get_ident() == self._thread
        return self._function(inputs, *static)


def compare(model: Tokenizer, dtype: str, images: np.ndarray, sizes: Sequence[int]) -> list[BatchInvariance]:
    """A row for every batch size. The tolerance is calibrated first, and a CUDA device uses graphs, as in the service."""
    if model.device.type == "cuda":
        model.encoder.record([1, *sizes], CudaRecorder(model.device))
    model.calibrate(distinct_images(16, model.image_size, seed=1), sizes, seconds=60.0)
    counting = _CountingEncoder(model.encoder)
    model._functions.encoder = counting  # type: ignore[assignment]
    single = torch.cat([model.encode(image[None]) for image in images])
    random, rows = np.random.default_rng(1), []
    for size in sizes:
        order = random.permutation(len(images))
        counting.singles = -int(len(images) % size == 1)  # the last, incomplete batch
        batched = torch.cat(
            [model.encode(images[order[first : first + size]]) for first in range(0, len(images), size)]
        )
        different = batched != single[order]
        rows.append(
            BatchInvariance(
                model=model.name,
                dtype=dtype,
                batch=size,
                images=len(images),
                ids=different.numel(),
                different_ids=int(different.sum()),
                different_images=int(different.any(1).sum()),
                re_encoded=counting.singles,
                tolerance=model.tolerance,
            )
        )
    model._functions.encoder = counting._function
    return rows


def formats_of(device: str) -> list[str]:
    """Number formats that a device supports."""
    lower = ["float16", "bfloat16"] if device.startswith("cuda") else ["bfloat16"]
    tensor_cores = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)
    return ["float32", *(["tf32", "tf32x3"] if tensor_cores else []), *lower]


def table(rows: Sequence[BatchInvariance]) -> str:
    """The results in Markdown."""
    lines = [
        "| model | format | batch | images | ids that differ | share | images with one | re-encoded | tolerance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.dtype} | {row.batch} | {row.images} | {row.different_ids} of {row.ids} | "
        f"{100 * row.share:.3f} % | {row.different_images} | {row.re_encoded} | {row.tolerance:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints the table and writes it, with JSON, to docs/benchmarks; exits with 1 if float32 ids depend on the batch."""
    parser = argparse.ArgumentParser(description="Compare ids of images encoded in batches and one by one.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=[DEFAULT_VARIANT])
    parser.add_argument("--dtypes", nargs="+", choices=list(FORMATS), default=None)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device: nothing to compare")
        return
    rows: list[BatchInvariance] = []
    for name in arguments.models:
        for dtype in arguments.dtypes or formats_of(arguments.device):
            model = tokenizer(name, dtype, arguments.device)
            images = distinct_images(arguments.images, model.image_size)
            rows += compare(model, dtype, images, arguments.sizes)
            print(table(rows[-len(arguments.sizes) :]), flush=True)
    write(arguments.output, f"batch-invariance-{arguments.device.partition(':')[0]}", rows)
    if any(row.different_ids for row in rows if row.dtype == "float32"):
        sys.exit("float32 ids depend on the batch")


def write(folder: Path, name: str, rows: Sequence[BatchInvariance]) -> None:
    """Writes ``name``.md and .json; rows of models and formats that were not measured this time are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    before: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    measured = {(row.model, row.dtype) for row in rows}
    kept = [BatchInvariance(**{key: row[key] for key in BatchInvariance.__dataclass_fields__}) for row in before]
    rows = [*(row for row in kept if (row.model, row.dtype) not in measured), *rows]
    head = f"Ids of images encoded in batches and one by one, on {processor()}, torch {torch.__version__}."
    document = {
        "processor": processor(),
        "torch": torch.__version__,
        "rows": [asdict(row) | {"share": row.share} for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{name}.md").write_text(f"{head}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
