"""Checks and measures a CUDA device in less than eight minutes, without a network: ``make gpu-check``.

Runs the tests that need a device; measures images per second of the bare models by variant, number format and batch size,
relative to the device's matrix products; compares ids between formats and batch sizes; and measures images per second
through HTTP. Parts that lack a package or time are skipped and named. Without a device the check ends with status 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models.checkpoints.bundled import DEFAULT_VARIANT
from tests.benchmarks import batch_invariance, gpu_models, gpu_service, gpu_targets, precision
from tests.benchmarks.images import distinct_images
from tests.benchmarks.models import OUTPUT, processor, tokenizer

ROOT = Path(__file__).parents[2]
MODELS = (DEFAULT_VARIANT, "titok-s-128", "titok-b-64", "titok-l-32")
BATCHES = (1, 8, 32, 128)
TEST_SECONDS = 150.0
PARTS = ("tests", "throughput", "ids", "service")
RUNNER, TESTS, TRAINING_TESTS = "pytest", "tests/gpu", "tests/models/training"


class Check:
    """The parts of the check within a time limit; ``document`` collects their results."""

    budget = 0.15  # seconds for a figure

    def __init__(self, device: torch.device, *, models: Sequence[str], batches: Sequence[int], seconds: float) -> None:
        self.device = device
        self.models = models
        self.batches = batches

        self._until = time.monotonic() + seconds
        self.document: dict[str, Any] = {
            "device": processor() if device.type == "cuda" else str(device),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
        self.tables: list[str] = []
        self.failed = False

    @property
    def left(self) -> float:
        """Remaining seconds."""
        return self._until - time.monotonic()

    def say(self, title: str, text: str) -> None:
        """Prints a section and stores it for the report."""
        section = f"## {title}\n\n{text}"
        print(f"\n{section}\n", flush=True)
        self.tables.append(section)

    def tests(self) -> None:
        """Runs the tests marked ``gpu`` in a separate process, without this project's pytest options."""
        if importlib.util.find_spec("pytest") is None:
            self.say("Tests", "Not run: pytest is not installed.")
            return
        options = ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default", "-o", "timeout=0"]
        paths = [TESTS]
        if importlib.util.find_spec("filelock") is not None:
            paths.append(TRAINING_TESTS)
        command = [sys.executable, "-m", RUNNER, "-q", "-rs", "-m", "gpu", *options, *paths]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=min(TEST_SECONDS, self.left), check=False
            )
            output, status = ended.stdout, ended.returncode
        except subprocess.TimeoutExpired as late:
            output, status = f"{(late.stdout or b'').decode()}\nout of time", 1
        self.failed |= status not in (0, 5)  # 5: nothing was collected
        self.document["tests"] = {"status": status, "output": output[-20_000:].splitlines()}
        self.say("Tests", f"```\n{output[-4000:].strip()}\n```")

    def throughput(self) -> None:
        """Measures the bare models."""
        dtypes = batch_invariance.formats_of(str(self.device))
        peaks = {dtype: gpu_models.matrix_peak(dtype, self.device) for dtype in dtypes}
        rows: list[gpu_models.Throughput] = []
        skipped: list[str] = []
        for name in self.models:
            for dtype in dtypes:
                if self.left < 180:
                    skipped.append(f"{name} in {dtype}")
                    continue
                rows += gpu_models.throughput(
                    name, dtype, self.device, batches=self.batches, peak=peaks[dtype], seconds=self.budget
                )
        self.document["peaks_tflops"], self.document["throughput"] = peaks, [asdict(row) for row in rows]
        late = f"\n\nOut of time for {', '.join(skipped)}." if skipped else ""
        self.say("Bare models", gpu_models.table(rows, peaks) + late)

    def ids(self, *, images: int, synthetic_images: int) -> None:
        """Ids in each format compared with float32, and in batches compared with single images."""
        agreements: list[precision.Agreement] = []
        invariance: list[batch_invariance.BatchInvariance] = []
        for name, count in ((DEFAULT_VARIANT, images), ("titok-s-128", synthetic_images)):
            if name not in self.models or self.left < 100:
                continue
            agreements += precision.compare_precisions(
                name, str(self.device), images=count, batch=min(32, max(self.batches)), budget=self.budget, early=[1, 2]
            )
            for dtype in batch_invariance.formats_of(str(self.device)):
                made = tokenizer(name, dtype, str(self.device))
                pixels = distinct_images(count, made.image_size)
                invariance += batch_invariance.compare(made, dtype, pixels, [size for size in self.batches if size > 1])
        self.document["precision"] = [asdict(row) for row in agreements]
        self.document["batch_invariance"] = [asdict(row) | {"share": row.share} for row in invariance]
        self.failed |= any(row.different_ids for row in invariance if row.dtype == "float32")
        self.say("Ids by format", precision.table(agreements))
        self.say("Batch invariance", batch_invariance.table(invariance))

    def service(self, *, seconds: float) -> None:
        """Measures throughput through HTTP, compared with the best rate of the bare model."""
        missing = gpu_service.missing_packages()
        if missing:
            self.say("Service", f"Not measured: {', '.join(missing)} not installed (`make install`).")
            return
        lines = ["| model | images/s through HTTP | bare model, float32, at its best | share |", "|---|---|---|---|"]
        self.document["service"] = []
        for name in (DEFAULT_VARIANT, "titok-s-128"):
            if name not in self.models or self.left < 2 * seconds + 30:
                continue
            bare = max(
                (
                    row["images_per_second"]
                    for row in self.document.get("throughput", [])
                    if (row["model"], row["operation"], row["dtype"]) == (name, "encode", "float32")
                ),
                default=float("nan"),
            )
            try:
                with tempfile.TemporaryDirectory() as folder:
                    rate = gpu_service.http_throughput(name, str(self.device), Path(folder), seconds=seconds)
            except RuntimeError as error:
                lines.append(f"| {name} | {' '.join(str(error).split())[-300:]} | {bare:.1f} | |")
                self.failed = True
                continue
            measured = None if math.isnan(bare) else bare
            self.document["service"].append(
                {"model": name, "images_per_second": rate, "bare_images_per_second": measured}
            )
            lines.append(f"| {name} | {rate:.1f} | {bare:.1f} | {rate / bare:.2f} |")
        self.say("Service", "\n".join(lines))

    def targets(self) -> None:
        """Compares what was measured with what an H100 or H200 should reach."""
        rows = gpu_targets.targets(self.document)
        self.document["targets"] = [asdict(row) for row in rows]
        self.say("Targets of an H100 or H200", gpu_targets.table(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the sections and writes them, with JSON; exits with 1 if a test failed or float32 ids depend on the batch."""
    parser = argparse.ArgumentParser(description="Checks and measures a CUDA device.")
    parser.add_argument("--device", default="cuda:0", help="'cpu' only tests this script")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--images", type=int, default=500, help="number of images whose ids are compared")
    parser.add_argument("--seconds", type=float, default=450.0, help="time limit")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"no CUDA device here (PyTorch {torch.__version__}): nothing to check")
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    begun = time.monotonic()
    check = Check(device, models=asked.models, batches=asked.batches, seconds=asked.seconds)
    if "tests" in asked.parts:
        check.tests()
    if "throughput" in asked.parts:
        check.throughput()
    if "ids" in asked.parts:
        check.ids(images=asked.images, synthetic_images=min(128, asked.images))
    if "service" in asked.parts:
        check.service(seconds=10.0)
    if left_out := [part for part in PARTS if part not in asked.parts]:
        check.say("Left out", f"{', '.join(left_out)}: not in --parts.")
    check.targets()
    check.document["seconds"] = time.monotonic() - begun
    head = f"# {check.document['device']}\n\nPyTorch {torch.__version__}, CUDA {torch.version.cuda}."
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "gpu.md").write_text("\n\n".join([head, *check.tables]) + "\n")
    (asked.output / "gpu.json").write_text(json.dumps(check.document, indent=1) + "\n")
    print(f"{check.document['seconds']:.0f} s; written to {asked.output / 'gpu.md'} and gpu.json")
    if check.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
