"""Runs a training config: reads it, opens the data, trains, and writes the checkpoint."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from models.data.datasets import ImageDataset, open_dataset
from models.data.sources import SPLITS
from models.errors import ConfigError
from models.training.config import GeneratorRun, TokenizerRun, read_config
from models.training.distributed import process_group
from models.training.generator import GeneratorTask, generator_classes, tokenize
from models.training.loop import train
from models.training.pixels import PixelTask
from models.training.pretrained import PROXY_TOKENIZER, load_frozen_tokenizer, load_vqgan
from models.training.proxy import ProxyCodeTask
from models.training.stored_tokens import open_token_sets
from models.training.task import N, Task

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Input and output folders of a run, its device and time limit.

    ``data`` holds the images (see ``models.data.datasets``), or with ``from_tokens`` the tokens of a generator (see
    ``models.training.stored_tokens``); ``output`` gets the state, the log and the checkpoint;
    ``cache`` keeps decoded images and tokens.
    """

    data: Path
    output: Path
    cache: Path
    device: torch.device
    from_tokens: bool = False
    max_minutes: float | None = None
    resume: bool = False


class TrainingCallbacks(Protocol):
    """Receives the progress of a run, and can stop it."""

    def on_prepare(self, what: str, done: int, total: int | None) -> None:
        """Called while images are decoded or tokenized."""

    def on_step(self, step: int, progress: float, figures: dict[str, float]) -> None:
        """Called after each step; ``progress`` is from 0 to 1."""

    def should_stop(self) -> bool:
        """Whether to end after the current step."""


def find_config(name: str) -> Path:
    """A config file by its path, or a bundled one by its name (``titok-mini-32``). Raises :class:`ConfigError`."""
    path, bundled = Path(name), CONFIGS / f"{name}.toml"
    if path.suffix in (".toml", ".yaml", ".yml"):
        return path
    if not bundled.is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
        raise ConfigError(f"{name} is neither a .toml or .yaml file nor a bundled config: {names}")
    return bundled


def train_tokenizer(config: Path, options: RunOptions, callbacks: TrainingCallbacks) -> dict[str, float]:
    """Trains the tokenizer of a :class:`TokenizerRun` file; returns the last figures.

    Raises ``ConfigError``, ``CheckpointError``, ``DataError``, ``Diverged``, ``OSError`` for a full disk.
    """
    run = read_config(config, TokenizerRun)
    with process_group(options.device):
        train_images, validation_images = _open_splits(options, run.network.image_size, callbacks, random_crops=True)
        task: PixelTask | ProxyCodeTask
        if run.recipe == "stage-1":
            vqgan = load_vqgan(run.initial.vqgan or PROXY_TOKENIZER, options.device)
            task = ProxyCodeTask(run, train_images, validation_images, vqgan, options.device)
        else:
            task = PixelTask(run, train_images, validation_images, options.device)
        return _train(task, options, callbacks)


def train_generator(config: Path, options: RunOptions, callbacks: TrainingCallbacks) -> dict[str, float]:
    """Trains the generator of a :class:`GeneratorRun` file; returns and raises what :func:`train_tokenizer` does."""
    run = read_config(config, GeneratorRun)
    with process_group(options.device):
        tokenizer = load_frozen_tokenizer(run.training.tokenizer, options.device)
        if options.from_tokens:
            classes, (train_tokens, validation_tokens) = open_token_sets(options.data, run, tokenizer)
        else:
            splits = _open_splits(options, tokenizer.network.config.image_size, callbacks)
            classes = generator_classes(run, splits[0].names)
            progress = partial(callbacks.on_prepare, "tokenizing")
            train_tokens, validation_tokens = (
                tokenize(split, classes, tokenizer, cache=options.cache, progress=progress) for split in splits
            )
        task = GeneratorTask(run, classes, train_tokens, validation_tokens, tokenizer, options.device)
        return _train(task, options, callbacks)


def _open_splits(
    options: RunOptions, size: int, callbacks: TrainingCallbacks, *, random_crops: bool = False
) -> list[ImageDataset]:
    """The training and the validation images."""
    return [
        open_dataset(
            options.data,
            split,
            size=size,
            uncropped=random_crops and split == "train",
            cache=options.cache,
            progress=partial(callbacks.on_prepare, f"decoding {split}"),
        ).to(options.device)
        for split in SPLITS
    ]


def _train(task: Task[N], options: RunOptions, callbacks: TrainingCallbacks) -> dict[str, float]:
    return train(
        task,
        options.output,
        max_minutes=options.max_minutes,
        resume=options.resume,
        report=callbacks.on_step,
        should_stop=callbacks.should_stop,
    )
