"""The checkpoint that ships with the project: its name, and where its files are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUNDLED_WEIGHTS", "DEFAULT_VARIANT"]

DEFAULT_VARIANT = "titok-mini-32"
BUNDLED_WEIGHTS = Path(__file__).parents[1] / "weights"
