"""The checkpoint that ships with the project: its name, and where its files are."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEFAULT_VARIANT", "SHIPPED"]

DEFAULT_VARIANT = "titok-mini-32"
SHIPPED = Path(__file__).parents[1] / "weights"
