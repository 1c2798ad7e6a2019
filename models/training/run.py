"""From a config file to a trained checkpoint: reads, prepares, trains. The command line adds only its looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from models.data.datasets import InMemoryDataset, StreamingDataset, open_dataset
from models.training.config import (
    ConfigError,
    GeneratorRun,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerRun,
    read_config,
)
from models.training.distributed import process_group
from models.training.generator import GeneratorTask, generator_classes, tokenize
from models.training.loop import N, Task, train
from models.training.pixels import PixelTask
from models.training.pretrained import load_frozen_tokenizer, load_vqgan
from models.training.proxy import ProxyCodeTask

__all__ = ["RunOptions", "TrainingCallbacks", "find_config", "train_generator", "train_tokenizer"]

CONFIGS = Path(__file__).parent / "configs"
PROXY_TOKENIZER = "maskgit-vqgan-f16"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and how long it may take.

    ``data`` holds photographs (see ``models.data.datasets``); ``output`` gets the state, the log and the checkpoint;
    ``cache`` keeps decoded photographs and tokens.
    """

    data: Path
    output: Path
    cache: Path
    device: torch.device
    max_minutes: float | None = None
    resume: bool = False


class TrainingCallbacks(Protocol):
    """Hears how a run goes, and may end it."""

    def preparing(self, what: str, done: int, total: int | None) -> None:
        """Photographs are being decoded or tokenized."""

    def step(self, step: int, progress: float, figures: dict[str, float]) -> None:
        """A step was made; ``progress`` is from 0 to 1."""

    def stopping(self) -> bool:
        """Whether to end after the step at hand."""


def find_config(name: str) -> Path:
    """A file by its path, or one of the project's own by its name (``titok-mini-32``). Raises :class:`ConfigError`."""
    path, own = Path(name), CONFIGS / f"{name}.toml"
    if path.suffix in (".toml", ".yaml", ".yml"):
        return path
    if not own.is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise ConfigError(f"{name} is no .toml or .yaml file, and no config of the project's own: {names}")
    return own


def train_tokenizer(config: Path, places: RunOptions, watcher: TrainingCallbacks) -> dict[str, float]:
    """Trains what a :class:`TokenizerRun` file describes; returns the last figures.

    Raises ``ConfigError``, ``CheckpointError``, ``DataError``, ``Diverged``, ``OSError`` for a full disk.
    """
    run = read_config(config, TokenizerRun)
    with process_group(places.device):
        size = run.network.image_size
        photographs = _photographs(places, "train", size, watcher), _photographs(places, "val", size, watcher)
        if run.recipe == "stage-1":
            vqgan = load_vqgan(run.initial.vqgan or PROXY_TOKENIZER, places.device)
            return _train(ProxyCodeTask(run, *photographs, vqgan, places.device), run, places, watcher)
        return _train(PixelTask(run, *photographs, places.device), run, places, watcher)


def train_generator(config: Path, places: RunOptions, watcher: TrainingCallbacks) -> dict[str, float]:
    """Trains what a :class:`GeneratorRun` file describes; returns the last figures. Raises what the other does."""
    run = read_config(config, GeneratorRun)
    with process_group(places.device):
        tokenizer = load_frozen_tokenizer(run.training.tokenizer, places.device)
        size = tokenizer.config.image_size
        splits = _photographs(places, "train", size, watcher), _photographs(places, "val", size, watcher)
        classes = generator_classes(run, splits[0].names)
        train_tokens, validation_tokens = (
            tokenize(
                photographs,
                classes,
                tokenizer,
                cache=places.cache,
                progress=lambda done, total: watcher.preparing("tokenizing", done, total),
            )
            for photographs in splits
        )
        task = GeneratorTask(run, classes, train_tokens, validation_tokens, tokenizer, places.device)
        return _train(task, run, places, watcher)


def _photographs(
    places: RunOptions, split: Literal["train", "val"], size: int, watcher: TrainingCallbacks
) -> InMemoryDataset | StreamingDataset:
    photographs = open_dataset(
        places.data,
        split,
        size=size,
        cache=places.cache,
        progress=lambda done, total: watcher.preparing(f"decoding {split}", done, total),
    )
    return photographs.to(places.device)


class _Scheduled(Protocol):
    @property
    def schedule(self) -> ScheduleConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...


def _train(task: Task[N], run: _Scheduled, places: RunOptions, watcher: TrainingCallbacks) -> dict[str, float]:
    return train(
        task,
        run.schedule,
        run.optimizer,
        places.output,
        max_minutes=places.max_minutes,
        resume=places.resume,
        report=watcher.step,
        stopping=watcher.stopping,
    )
