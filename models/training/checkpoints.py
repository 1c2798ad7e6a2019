"""Files that a training run writes: ``state.pt``, to resume from, and the checkpoint that the service loads."""

import errno
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.atomic_files import write_atomically


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Saves everything that a run needs to resume. Raises ``OSError``."""
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch reports a failed write without its cause
        raise OSError(errno.EIO, "could not be written, perhaps because the disk is full", str(path)) from error


def load_state(path: Path) -> dict[str, Any]:
    """Loads what :func:`save_state` saved; refuses anything but tensors and plain values."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Writes ``config.json`` and ``model.safetensors`` (float16)."""
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / "model.safetensors", lambda file: file.write(save(halves)))
    text = json.dumps(config, indent=2) + "\n"
    write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
