"""What can be wrong with a variant's name, its weights, or the file that describes them.

::

    LookupError ── UnknownVariantError       a name that no variant bears
    ValueError ─── ConfigError               a config.json that describes no network
    Exception ─┬── CheckpointError           weights that cannot be found, read or fitted to the network
               │   └── UnreadableCheckpoint  a file that is there and holds no weights, or not all of them
               └── DataError                 a dataset that cannot be used

Needs no torch, so that whoever only reports these errors does not either.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "UnknownVariantError",
    "UnreadableCheckpoint",
    "missing_package",
]


class UnknownVariantError(LookupError):
    """A name that no variant bears."""


class ConfigError(ValueError):
    """A configuration that does not describe a network; the message names the key."""


class DataError(Exception):
    """A dataset that cannot be used: empty, mismatched classes, too many unreadable images, or no space for its cache."""


class CheckpointError(Exception):
    """Weights that cannot be found, read or fitted to the network; the message says what to do."""


class UnreadableCheckpoint(CheckpointError):
    """A ``file`` that is there and holds no weights, or not all of them."""

    def __init__(self, file: Path, reason: object) -> None:
        super().__init__(f"{file} cannot be read as weights: {reason}")
        self.file = file


def missing_package(error: ImportError, extra: str) -> str:
    """The message for an import that failed: the package, and the command that installs it in a checkout."""
    # Torchvision must match the build of torch, so the extra "published" is in no lock file.
    command = "pip install -e '.[published]'" if extra == "published" else "make install"
    return (
        f"the package {error.name} is not installed (extra {extra!r}); in a checkout of the repository, run: {command}"
    )
