"""Files that are either whole or not there: written beside their place, synced, renamed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

__all__ = ["load_state", "save_checkpoint", "save_state", "write_whole"]


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write`` on a new file that takes the place of ``path`` only once all of it is on the disk.

    Whatever goes wrong before that, a full disk or a kill, leaves the previous file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Saves everything a run needs to go on. Raises ``OSError``."""
    try:
        write_whole(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch says no more of a write that failed
        raise OSError(errno.EIO, "could not be written, perhaps for want of room", str(path)) from error


def load_state(path: Path) -> dict[str, Any]:
    """What :func:`save_state` saved; refuses anything but tensors and plain values."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes ``config.json`` and ``model.safetensors``, float16, as the service loads them."""
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    write_whole(folder / "model.safetensors", lambda file: file.write(save(halves)))
    text = json.dumps(config, indent=2) + "\n"
    write_whole(folder / "config.json", lambda file: file.write(text.encode()))
