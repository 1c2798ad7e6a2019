"""Peak memory of FID, Inception Score, precision and recall on random features.

``python -m tests.benchmarks.evaluation_memory [--rows N] [--references M] [--columns C]``
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from models.evaluation.inception import CLASSES, FeatureNetwork
from models.evaluation.published import Reference, array_batches, extract, published_figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=200_000)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="folder for the features")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cpu")
    network = FeatureNetwork(
        lambda images: torch.randn(len(images), options.columns, generator=generator),
        torch.randn(CLASSES, options.columns, generator=generator) / options.columns**0.5,
        device,
    )
    with TemporaryDirectory(dir=options.folder) as folder:
        features, references = (
            extract(network, array_batches(np.zeros((count, 1, 1, 3), np.uint8), description=""), folder=Path(folder))
            for count in (options.rows, options.references)
        )
        began = time.perf_counter()
        figures = published_figures(features, Reference.of(references), network)
        seconds = time.perf_counter() - began
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(figures)
    print(f"{seconds:.0f} s with {torch.get_num_threads()} threads, {options.columns} columns")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, files that are mapped included")
    print("now: " + ", ".join(f"{name} {status[name].strip()}" for name in ("RssAnon", "RssFile")))


if __name__ == "__main__":
    main()
