"""The checkpoint bundled with the project: variant name and folder."""

from pathlib import Path

DEFAULT_VARIANT = "titok-mini-32"
BUNDLED_WEIGHTS = Path(__file__).parents[1] / "weights"
