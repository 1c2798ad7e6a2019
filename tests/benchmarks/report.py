"""Output of the benchmarks: Markdown tables, JSON and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.benchmarks.models import OUTPUT, processor

__all__ = ["OUTPUT", "goals_table", "machine", "markdown", "write"]


def machine(*packages: str, **others: str) -> dict[str, str]:
    """The processor and the versions of Python, torch and other named programs."""
    versions = {name: version(name) for name in ("torch", *packages)}
    return {"processor": processor(), "python": platform.python_version(), **versions, **others}


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; floats are shown with three significant digits."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def goals_table(figures: Mapping[str, float], goals: Mapping[str, str]) -> str:
    """The measured figures beside their goals."""
    return markdown(
        ["figure", "measured", "goal"], [[name, value, goals.get(name, "")] for name, value in figures.items()]
    )


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def write(name: str, folder: Path, *, document: Mapping[str, Any], tables: Sequence[str], figure: Figure) -> None:
    """Prints the tables, and writes ``name``.md, .json and .png."""
    facts = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    text = "\n\n".join([f"{facts}.", *tables])
    print(f"\n{text}\n", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(f"{text}\n")
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    figure.savefig(folder / f"{name}.png", dpi=120)
