"""Loading of checkpoints from a file, a folder or a hub repository, with strict checks of all tensors.

::

    --weights  ─┬─ file.safetensors ────────────────┐
                ├─ file.bin (a bare state dict) ────┤
                ├─ folder/ (config.json + weights) ─┼─> Checkpoint(tensors, config) ─> load_strictly(network)
                └─ org/repo[@revision][:file] ──────┘
                     through huggingface_hub

No code is unpickled: ``.bin`` files are read with ``weights_only``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import CheckpointError, UnreadableCheckpoint

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?")
# A constant saved by transformers before 4.31, not a weight.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IGNORED = re.compile(r"(^|\.)position_ids$")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a hub repository, at a ``revision`` (commit, tag or branch)."""

    repo: str
    filename: str = "model.safetensors"
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubFile | None:
        """``org/repo``, ``org/repo@revision`` or ``org/repo@revision:file``; None for anything else."""
        match = _HUB_ID.fullmatch(text)
        if match is None or match["repo"].endswith((".safetensors", ".bin")):  # a missing file
            return None
        return cls(repo=match["repo"], revision=match["revision"] or "main", filename=match["file"] or WEIGHT_FILES[0])

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}:{self.filename}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by published name, the contents of ``config.json`` if there is one, and the source."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None
    source: str
    file: Path | None = None

    def digest(self) -> str:
        """SHA-256, hexadecimal, of names, shapes, dtypes and values, independent of the file format."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def open_checkpoint(weights: str | Path | HubFile) -> Checkpoint:
    """Reads a local file or folder, or downloads from the hub. Raises ``CheckpointError``."""
    if isinstance(weights, HubFile):
        return _download(weights)
    path = Path(weights).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    hub = HubFile.parse(str(weights))
    if hub is None:
        raise CheckpointError(f"no weights at {weights}: expected a .safetensors or .bin file, a folder, or a hub id")
    return _download(hub)


def _open_folder(folder: Path) -> Checkpoint:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return _open_file(folder / name)
    raise CheckpointError(f"no {' or '.join(WEIGHT_FILES)} in the folder {folder}")


def _open_file(path: Path) -> Checkpoint:
    return Checkpoint(tensors=_read_tensors(path), config=_read_config(path.parent), source=str(path), file=path)


def _read_config(folder: Path) -> Mapping[str, Any] | None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not an object")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UnreadableCheckpoint(path, "it is a pointer of Git LFS, without the weights; run: git lfs pull")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _read_bin(path)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UnreadableCheckpoint(path, error) from None
    return {name: tensor for name, tensor in tensors.items() if not _IGNORED.search(name)}


def _read_bin(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError("expected a bare state dict, names to tensors")
    return content


def _download(hub: HubFile) -> Checkpoint:
    """Downloads with huggingface_hub (its cache, progress bar, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE apply)."""
    failure = _unavailable(hub)
    if failure is not None and hub.filename == WEIGHT_FILES[0] and _has_older_format(hub, failure):
        return _download(replace(hub, filename=WEIGHT_FILES[1]))
    fetch = partial(hf_hub_download, hub.repo, revision=hub.revision, local_files_only=failure is not None)
    try:
        path = Path(fetch(hub.filename))
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(f"{hub} is not in the local cache, and {_reason(hub, failure or error)}") from error
    config = None  # the variant's own configuration applies
    if hub.filename in WEIGHT_FILES:
        with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
            config = _read_config(Path(fetch(CONFIG_FILE)).parent)
    # The cache folder is named after the commit, also for a branch or tag.
    return Checkpoint(tensors=_read_tensors(path), config=config, source=f"{hub.repo}@{path.parent.name}", file=path)


def _unavailable(hub: HubFile) -> Exception | None:
    """Why the hub does not offer a file now. None if it does, or if nothing is needed: a commit's file is in the cache.

    Asks once. ``hf_hub_download`` asks six times in 23 seconds, with two lines of log each, where there is no network.
    """
    if _COMMIT.fullmatch(hub.revision) and try_to_load_from_cache(hub.repo, hub.filename, revision=hub.revision):
        return None
    try:
        get_hf_file_metadata(hf_hub_url(hub.repo, hub.filename, revision=hub.revision))
    except (
        Exception
    ) as error:  # also those of the HTTP library, which is another one in other versions of huggingface_hub
        return error
    return None


def _has_older_format(hub: HubFile, failure: Exception) -> bool:
    """Whether ``pytorch_model.bin`` is there instead: on the hub, or without a hub in the cache."""
    if isinstance(failure, RemoteEntryNotFoundError):
        return _unavailable(replace(hub, filename=WEIGHT_FILES[1])) is None
    first, second = (try_to_load_from_cache(hub.repo, name, revision=hub.revision) for name in WEIGHT_FILES)
    return not isinstance(first, str) and isinstance(second, str)


def _reason(hub: HubFile, error: Exception) -> str:
    """What is wrong, and what to do, in one line."""
    page = f"https://huggingface.co/{hub.repo}"
    if isinstance(error, GatedRepoError):
        return f"access to {hub.repo} is gated: accept its conditions at {page}, and set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError) or _status(error) == HTTPStatus.UNAUTHORIZED:
        return f"there is no public repository {hub.repo}: check its name, or set HF_TOKEN to a token with access to it"
    if isinstance(error, RevisionNotFoundError):
        return f"{hub.repo} has no revision {hub.revision}: its branches, tags and commits are listed at {page}/commits/main"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{hub.repo} has no file {hub.filename} at {hub.revision}: its files are listed at {page}/tree/{hub.revision}"
    offline = isinstance(error, OfflineModeIsEnabled)
    cause = "HF_HUB_OFFLINE is set" if offline else f"the hub does not answer ({str(error).splitlines()[0]})"
    both = f"{hub.filename} and {CONFIG_FILE}" if hub.filename in WEIGHT_FILES else hub.filename
    return (
        f"{cause}: download {both} from {page}/tree/{hub.revision} into a folder, and pass that folder as the weights"
    )


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinite values, from its extremes: 27 times faster than ``torch.isfinite``."""
    return not tensor.numel() or all(map(math.isfinite, map(float, tensor.float().aminmax())))


def load_strictly(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Assigns a checkpoint's tensors, as float32, to a network built with ``skip_init``.

    Raises ``CheckpointError`` that names missing, unexpected and misshapen tensors, those that are no floating-point
    numbers, and those with values that are not finite.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    complaints = [
        *(f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in given),
        *(f"unexpected {name} {list(shape)}" for name, shape in given.items() if name not in expected),
        *(
            f"{name} is {list(given[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in given and given[name] != shape
        ),
        *(problem for name, tensor in checkpoint.tensors.items() if (problem := _invalid_values(name, tensor))),
    ]
    if complaints:
        shown = "; ".join(complaints[:8]) + (f"; and {len(complaints) - 8} more" if len(complaints) > 8 else "")
        raise CheckpointError(f"{checkpoint.source} does not fit {type(network).__name__}: {shown}")
    network.load_state_dict(
        {name: tensor.to(torch.float32) for name, tensor in checkpoint.tensors.items()}, assign=True
    )


def _invalid_values(name: str, tensor: Tensor) -> str | None:
    if not tensor.is_floating_point():
        return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers"
    return None if is_finite(tensor) else f"{name} has values that are not finite"
