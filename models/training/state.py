"""What a training run leaves on the disk: its state, and checkpoints."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.atomic_files import write_whole

__all__ = ["load_state", "save_checkpoint", "save_state"]


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
