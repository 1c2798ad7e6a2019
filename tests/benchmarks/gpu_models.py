"""Throughput of the bare models on a CUDA device by variant, number format and batch size, relative to the device's matrix
products. Part of ``make gpu-check``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import Generator, Tokenizer
from models.runtime.cuda_graphs import CudaRecorder, GraphedFunction
from models.runtime.device_memory import is_out_of_memory, release_memory
from models.runtime.precision import FORMATS
from tests.benchmarks.images import distinct_images
from tests.benchmarks.models import generator, tokenizer

__all__ = ["Throughput", "matrix_peak", "table", "throughput"]


_MATRIX_SIZE = 8192


@dataclass(frozen=True)
class Throughput:
    """Images a second of one operation (of ``step``: rows a second), copies in and out included, and tera-operations a
    second of its matrix products and convolutions, over the device's peak in that format.
    """

    model: str
    operation: str
    dtype: str
    batch: int
    images_per_second: float
    teraflops: float
    share_of_peak: float


def matrix_peak(dtype: str, device: torch.device, *, seconds: float = 1.0) -> float:
    """TFLOP/s of a large matrix product of random numbers in a format's own arithmetic; of ``tf32x3`` a third of TF32's."""
    size = _MATRIX_SIZE if device.type == "cuda" else 1024
    kind = FORMATS["tf32" if dtype == "tf32x3" else dtype]
    left, right = (torch.randn(size, size, device=device).to(kind.dtype) for _ in range(2))
    with kind.on(device):
        best = _fastest(lambda: left @ right, seconds, device)
    return 2e-12 * size**3 / best / (3 if dtype == "tf32x3" else 1)


def throughput(
    name: str, dtype: str, device: torch.device, *, batches: Sequence[int], peak: float, seconds: float
) -> list[Throughput]:
    """Rows for encode, decode and step at each batch size that fits into memory; ``seconds`` for each figure."""
    measured = _of_tokenizer(tokenizer(name, dtype, str(device)), batches, seconds)
    release_memory(device)
    measured += _of_generator(generator(name, dtype, str(device)), batches, seconds)
    release_memory(device)
    rows = []
    for operation, size, images, operations in measured:
        flops = 1e-12 * images * operations
        rows.append(Throughput(name, operation, dtype, size, images, flops, flops / peak))
    return rows


Measured = list[tuple[str, int, float, int]]
"""Operation, batch size, images a second, floating-point operations of one image."""


def _of_tokenizer(made: Tokenizer, batches: Sequence[int], seconds: float) -> Measured:
    pixels = distinct_images(max(batches), made.image_size)
    ids = made.encode(pixels[:1]).numpy().repeat(max(batches), axis=0)
    made.calibrate(distinct_images(16, made.image_size, seed=1), [size for size in batches if size > 1], seconds=5.0)
    operations = _operations(made)
    measured: Measured = []
    for size in _that_fit(batches, made.encoder, made.device):
        elapsed = _fastest(partial(made.encode, pixels[:size]), seconds, made.device)
        measured.append(("encode", size, size / elapsed, operations["encode"]))
    made.encoder.discard()
    for size in _that_fit(batches, made.decoder, made.device):
        elapsed = _fastest(partial(made.decode, ids[:size]), seconds, made.device)
        measured.append(("decode", size, size / elapsed, operations["decode"]))
    return measured


def _of_generator(made: Generator, batches: Sequence[int], seconds: float) -> Measured:
    settings = made.settings(guidance_scale=3.0, guidance_decay="constant")
    rows = [made.row(0, seed, settings) for seed in range(max(batches))]
    operations = _step_operations(made)
    measured: Measured = []
    for size in _that_fit(batches, made.stepper, made.device):
        elapsed = _fastest(partial(made.advance, rows[:size]), seconds, made.device)
        measured.append(("step", size, size / elapsed, operations))
    return measured


def _that_fit(batches: Sequence[int], function: GraphedFunction, device: torch.device) -> Iterator[int]:
    """Records each batch size in turn; ends with the first that memory is too short for."""
    recorder = CudaRecorder(device) if device.type == "cuda" else None
    for size in sorted(batches):
        try:
            if recorder is not None:
                function.record([size], recorder)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return
        yield size


def _fastest(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of the fastest of the runs that fit into so many, after a first one."""
    run()
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best


@torch.no_grad()
def _operations(made: Tokenizer) -> dict[str, int]:
    """Floating-point operations of the matrix products and convolutions that one image takes."""
    pixels = torch.zeros(1, made.image_size, made.image_size, 3, dtype=torch.uint8, device=made.device)
    ids = torch.zeros(1, made.num_tokens, dtype=torch.int64, device=made.device)
    counts = {}
    for name, run in (("encode", lambda: made.encoder(pixels, 1)), ("decode", lambda: made.decoder(ids, 0))):
        with FlopCounterMode(display=False) as counter:
            run()
        counts[name] = counter.get_total_flops()
    return counts


@torch.no_grad()
def _step_operations(made: Generator) -> int:
    """Those of one guided row's step."""
    tokens = torch.full((2, made.num_tokens), made.codebook_size, device=made.device)
    with FlopCounterMode(display=False) as counter:
        made.network(tokens, torch.tensor([0, -1], device=made.device))
    return int(counter.get_total_flops())


def table(rows: Sequence[Throughput], peaks: dict[str, float]) -> str:
    """The figures in Markdown."""
    lines = [
        "Matrix products of this device, measured: "
        + ", ".join(f"{name} {peak:.1f} TFLOP/s" for name, peak in peaks.items())
        + ".",
        "",
        "| model | operation | format | batch | images/s | TFLOP/s | of the peak |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.operation} | {row.dtype} | {row.batch} | {row.images_per_second:.1f} | "
        f"{row.teraflops:.2f} | {100 * row.share_of_peak:.0f} % |"
        for row in rows
    ]
    return "\n".join(lines)
