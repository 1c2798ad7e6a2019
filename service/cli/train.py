"""``titok train``: a tokenizer or a generator for pictures of one's own."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.errors import missing_package

if TYPE_CHECKING:
    import torch

    from models.training.run import RunOptions, TrainingCallbacks

__all__ = ["train"]

train = typer.Typer(
    help="Train a tokenizer or a generator (needs the extra 'train'). Several GPUs: torchrun --nproc-per-node N "
    "--no-python titok train ...",
    no_args_is_help=True,
)

Config = Annotated[str, typer.Argument(help="A TOML or YAML file, or a config of the project's own by its name.")]
Data = Annotated[
    Path, typer.Option(help="Folder of WebDataset shards (train-*.tar, val-*.tar, also .gz) or of class folders.")
]
Output = Annotated[Path, typer.Option(help="Folder for the state, the log, pictures and the checkpoint.")]
Cache = Annotated[Path, typer.Option(help="Folder for decoded photographs and tokens.")]
Minutes = Annotated[float | None, typer.Option(help="End earlier: the schedule then follows the clock.", min=0.01)]
Threads = Annotated[int | None, typer.Option(help="Threads of each operation; by default one a core.", min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Resume = Annotated[bool, typer.Option(help="Go on from the state in --output, if there is one.")]

_CACHE = Path("runs/cache")


@train.command()
def tokenizer(
    config: Config,
    data: Data,
    output: Output,
    cache: Cache = _CACHE,
    max_minutes: Minutes = None,
    threads: Threads = None,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Train a tokenizer: stage-1, stage-2 or one-stage, as its config says."""
    _run(_training().train_tokenizer, config, data, output, cache, max_minutes, threads, device, resume=resume)


@train.command()
def generator(
    config: Config,
    data: Data,
    output: Output,
    cache: Cache = _CACHE,
    max_minutes: Minutes = None,
    threads: Threads = None,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Train a class-conditional generator on the tokens of a trained tokenizer."""
    _run(_training().train_generator, config, data, output, cache, max_minutes, threads, device, resume=resume)


def _training() -> ModuleType:
    """``models.training.run``, which imports torch and the packages of the extra "train"."""
    try:
        from models.training import run
    except ModuleNotFoundError as error:
        raise ValueError(missing_package(error, "train")) from error
    return run


def _run(
    work: Callable[[Path, RunOptions, TrainingCallbacks], dict[str, float]],
    config: str,
    data: Path,
    output: Path,
    cache: Path,
    max_minutes: float | None,
    threads: int | None,
    device: str,
    *,
    resume: bool,
) -> None:
    import torch

    from models.errors import DataError
    from models.training.loop import Diverged
    from models.training.run import RunOptions, find_config

    if threads is not None:
        torch.set_num_threads(threads)
    on = _device(device)
    if on.type == "cuda":
        torch.cuda.set_device(on)
        torch.set_float32_matmul_precision("high")  # TF32, as published
    console = Console(stderr=True, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    places = RunOptions(data=data, output=output, cache=cache, device=on, max_minutes=max_minutes, resume=resume)
    try:
        with _Bars(console) as bars, _finishing(bars):
            figures = work(find_config(config), places, bars)
    except (DataError, Diverged) as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        raise ValueError(
            f"{error.strerror or error}: {error.filename or output}; what was saved before is whole"
        ) from error
    shown = {
        name: value for name, value in figures.items() if name.startswith(("validation", "codes", "entropy", "seam"))
    }
    console.print(f"{output / 'checkpoint'}: " + "  ".join(f"{name} {value:.5g}" for name, value in shown.items()))


def _device(name: str) -> torch.device:
    import torch

    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


class _Bars:
    """Progress on a terminal: preparation, then steps with images a second and the losses."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f} %")
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._tasks: dict[str, TaskID] = {}
        self.ending = False

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_prepare(self, what: str, done: int, total: int | None) -> None:
        """Draws how far a preparation is."""
        self._progress.update(self._bar(what), completed=done, total=total)

    def on_step(self, step: int, progress: float, figures: dict[str, float]) -> None:
        """Draws how far training is."""
        names = ("loss", "pixels", "perceptual", "adversarial", "proxy")
        losses = "  ".join(f"{name} {figures[name]:.4f}" for name in names if name in figures)
        speed = f"{figures['images_per_second']:.0f} images/s"
        self._progress.update(self._bar("training"), completed=progress, description=f"step {step}  {losses}  {speed}")

    def should_stop(self) -> bool:
        """Whether a signal has asked the run to end."""
        return self.ending

    def _bar(self, name: str) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0 if name == "training" else None)
        return self._tasks[name]


@contextmanager
def _finishing(bars: _Bars) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after the step at hand, with everything saved; a second one ends it at once."""

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def end(_number: int, _frame: FrameType | None) -> None:
        bars.ending = True
        restore()

    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()
