"""What an H100 or H200 should reach, beside what ``make gpu-check`` measured, or that it was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Target", "table", "targets"]

LARGE = "titok-l-32"
SAMPLING_STEPS = 8


@dataclass(frozen=True)
class Target:
    """A figure with its smallest good value; ``measured`` None: it was left out."""

    name: str
    at_least: float
    measured: float | None


def targets(document: Mapping[str, Any]) -> list[Target]:
    """The targets of a document of ``make gpu-check``."""

    def best(operation: str, formats: Sequence[str], figure: str) -> float | None:
        rows = (row for row in document.get("throughput", []) if row["model"] == LARGE)
        return max(
            (row[figure] for row in rows if row["operation"] == operation and row["dtype"] in formats), default=None
        )

    steps = best("step", ["float32"], "images_per_second")
    compared = (row for row in document.get("service", []) if row["bare_images_per_second"] is not None)
    shares = [row["images_per_second"] / row["bare_images_per_second"] for row in compared]
    invariant = [not row["different_ids"] for row in document.get("batch_invariance", []) if row["dtype"] == "float32"]
    return [
        Target(
            f"{LARGE} encode, bfloat16 or float16, share of the peak",
            0.55,
            best("encode", ["bfloat16", "float16"], "share_of_peak"),
        ),
        Target(
            f"{LARGE} encode, float32 (default), share of the peak", 0.35, best("encode", ["float32"], "share_of_peak")
        ),
        Target("images/s through HTTP over bare model", 0.92, min(shares, default=None)),
        Target(
            f"{LARGE} images/s generated in {SAMPLING_STEPS} steps, float32",
            1000.0,
            None if steps is None else steps / SAMPLING_STEPS,
        ),
        Target(
            "share of models whose float32 ids are equal in all batches",
            1.0,
            sum(invariant) / len(invariant) if invariant else None,
        ),
    ]


def table(rows: Sequence[Target]) -> str:
    """The targets in Markdown."""
    lines = ["| figure | target | measured | |", "|---|---|---|---|"]
    for row in rows:
        found = "left out" if row.measured is None else f"{row.measured:.2f}"
        verdict = "" if row.measured is None else "reached" if row.measured >= row.at_least else "missed"
        lines.append(f"| {row.name} | {row.at_least:g} | {found} | {verdict} |")
    return "\n".join(lines)
