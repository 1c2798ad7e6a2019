"""Trains the shipped tokenizer and its generator on a CUDA device in a limited time, without a network: ``make gpu-train``.

The last run of each recipe goes on from the shipped weights, for as many steps as the time allows; 60 % of it are the
tokenizer's. Run again, it resumes: the time of both runs counts.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from models.runtime.device_names import select_device
from models.training.run import RunOptions, find_config, train_generator, train_tokenizer

__all__ = ["main"]

_TOKENIZER_SHARE = 0.6
_REPORT_SECONDS = 10.0


class Report:
    """Prints the progress; see ``TrainingCallbacks``."""

    def __init__(self) -> None:
        self._due = 0.0

    def on_prepare(self, what: str, done: int, total: int | None) -> None:
        """Prints the progress of a preparation."""
        self._print(f"{what}: {done} of {total or '?'}")

    def on_step(self, step: int, progress: float, figures: dict[str, float]) -> None:
        """Prints the progress of training."""
        loss, speed = figures["loss"], figures["images_per_second"]
        self._print(f"{100 * progress:.0f} %, step {step}: loss {loss:.4f}, {speed:.0f} images/s")

    def should_stop(self) -> bool:
        """Never."""
        return False

    def _print(self, line: str) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _REPORT_SECONDS
            print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Trains, and prints and returns the last figures of both runs."""
    parser = argparse.ArgumentParser(description="Trains the shipped checkpoints in a limited time.")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, as for titok train")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder for decoded images and tokens")
    parser.add_argument("--minutes", type=float, default=25.0, help="time limit of both runs, without preparation")
    # By default the time ends the runs, and the learning rate follows it.
    parser.add_argument("--steps", type=int, default=1_000_000_000, help="limit of steps of each run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokenizer", default="titok-mini-32-prefix-joint", help="config of the tokenizer")
    parser.add_argument("--generator", default="titok-mini-32-generator", help="config of the generator")
    asked = parser.parse_args(arguments)
    device = select_device(asked.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")

    def options(part: str, share: float) -> RunOptions:
        return RunOptions(
            data=asked.data,
            output=asked.output / part,
            cache=asked.cache,
            device=device,
            max_minutes=share * asked.minutes,
            resume=True,
        )

    initial = {"checkpoint": str(BUNDLED_WEIGHTS / DEFAULT_VARIANT)} if asked.tokenizer.startswith("titok-mini") else {}
    schedule = {"steps": asked.steps}
    config = _derived(asked.tokenizer, asked.output / "tokenizer.yaml", schedule=schedule, initial=initial)
    figures = {"tokenizer": train_tokenizer(config, options("tokenizer", _TOKENIZER_SHARE), Report())}
    trained = {"tokenizer": str(asked.output / "tokenizer" / "checkpoint")}
    config = _derived(asked.generator, asked.output / "generator.yaml", schedule=schedule, training=trained)
    figures["generator"] = train_generator(config, options("generator", 1.0 - _TOKENIZER_SHARE), Report())
    for part, values in figures.items():
        shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items()) or "its time was used up before"
        print(f"{asked.output / part / 'checkpoint'}: {shown}")
    print("left out: evaluation on generated images (titok evaluate), and all runs of the recipe before the last")
    return figures


def _derived(name: str, path: Path, **changes: dict[str, Any]) -> Path:
    """Writes a config with ``changes`` to its sections, as YAML."""
    document = tomllib.loads(find_config(name).read_text())
    for section, values in changes.items():
        document[section] = document.get(section, {}) | values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


if __name__ == "__main__":
    main()
