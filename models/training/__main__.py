"""``python -m models.training tokenizer|generator CONFIG --data DIR --output DIR``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from models.checkpoints import CheckpointError
from models.data.photographs import DataError, Photographs, class_names, load_photographs
from models.training.config import ConfigError, GeneratorRun, OptimizerConfig, ScheduleConfig, TokenizerRun, read_config
from models.training.generator import GeneratorTask, load_frozen_tokenizer, tokenize
from models.training.loop import Diverged, N, Task, train
from models.training.tokenizer import TokenizerTask


def main(argv: list[str] | None = None) -> None:
    """Reads the arguments, trains, and shows how it goes."""
    parser = argparse.ArgumentParser(prog="python -m models.training", description="Trains a tokenizer or a generator.")
    parser.add_argument("what", choices=["tokenizer", "generator"])
    parser.add_argument("config", type=Path, help="a TOML file; the project's own are in models/training/configs")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train-*.tar.gz, val-*.tar.gz, classes.json"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the state, the log and the checkpoint")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder for decoded photographs")
    parser.add_argument("--max-minutes", type=float, help="end earlier: the schedule then follows the clock")
    parser.add_argument("--threads", type=int, help="threads of each operation; by default one a core")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output, if there is one")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    try:
        _train(arguments, console)
    except (ConfigError, CheckpointError, DataError, Diverged) as error:
        raise SystemExit(f"error: {error}") from error


def _train(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.what == "tokenizer":
        run = read_config(arguments.config, TokenizerRun)
        task = TokenizerTask(run, *_photographs(arguments, run.network.image_size))
        _run(task, run.schedule, run.optimizer, arguments, console)
    else:
        generator_run = read_config(arguments.config, GeneratorRun)
        _run(_generator(generator_run, arguments), generator_run.schedule, generator_run.optimizer, arguments, console)


def _run(
    task: Task[N],
    schedule: ScheduleConfig,
    optimizer: OptimizerConfig,
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=1.0)

        def report(step: int, done: float, figures: dict[str, float]) -> None:
            speed, loss = figures["images_per_second"], figures["loss"]
            progress.update(bar, completed=done, description=f"step {step}  loss {loss:.4f}  {speed:.0f} images/s")

        train(
            task,
            schedule,
            optimizer,
            arguments.output,
            max_minutes=arguments.max_minutes,
            resume=arguments.resume,
            report=report,
        )


def _generator(run: GeneratorRun, arguments: argparse.Namespace) -> GeneratorTask:
    tokenizer = load_frozen_tokenizer(Path(run.training.tokenizer))
    names = class_names(arguments.data)
    train_tokens, validation_tokens = (
        tokenize(photographs, names, list(run.training.classes), tokenizer, cache=arguments.cache)
        for photographs in _photographs(arguments, tokenizer.config.image_size)
    )
    return GeneratorTask(run, train_tokens, validation_tokens, tokenizer)


def _photographs(arguments: argparse.Namespace, size: int) -> tuple[Photographs, Photographs]:
    return (
        load_photographs(arguments.data, "train", size=size, cache=arguments.cache),
        load_photographs(arguments.data, "val", size=size, cache=arguments.cache),
    )


if __name__ == "__main__":
    main()
