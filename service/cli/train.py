"""``titok train``: trains a tokenizer or a generator."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.cli.options import CommandError, Device

train = typer.Typer(
    help="Train a tokenizer or a generator. On several GPUs: `torchrun --nproc-per-node N --no-python titok train ...`",
    no_args_is_help=True,
)

Config = Annotated[str, typer.Argument(help="TOML or YAML file, or the name of a config in models/training/configs.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Dataset: folder of `train-*.tar` and `val-*.tar` shards (also .gz), of class folders, or of images."
    ),
]
Tokens = Annotated[
    Path | None,
    typer.Option(
        help="Tokens for a generator, instead of --data: an output folder of titok tokenize, or two in `train` and `val`."
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for the training state, log, sample images and checkpoint.")]
Cache = Annotated[Path, typer.Option(help="Folder for decoded images and tokens.")]
Minutes = Annotated[float | None, typer.Option(help="Time limit, which the schedule then follows.", min=0.01)]
Threads = Annotated[int | None, typer.Option(help="Threads per operation (default: one per core).", min=1)]
Resume = Annotated[bool, typer.Option(help="Resume from the training state in --output, if there is one.")]


_REORDER_HELP = """Put the most informative tokens of a trained tokenizer first, as a start for training with tail drop.

Images keep their tokens, and the generator its images; only the order of the tokens changes. Writes `tokenizer/` and
`generator/` to --output, and prints the old positions in their new order.

Example:

    titok train reorder titok-mini-32 --generator titok-mini-32 --data photos/ --output runs/reordered
"""
_GENERATOR_HELP = """Train a class-conditional generator on the tokens of a trained tokenizer.

Examples:

    titok train generator titok-mini-32-generator --data photos/ --output runs/generator

    titok train generator titok-mini-32-generator --tokens tokens/ --output runs/generator
"""
_TOKENIZER_HELP = """Train a tokenizer; the config selects stage-1, stage-2 or one-stage training.

Example:

    titok train tokenizer titok-mini-32 --data photos/ --output runs/tokenizer --max-minutes 60
"""


@train.command("generator", help=_GENERATOR_HELP)
@train.command("tokenizer", help=_TOKENIZER_HELP)
def run(
    context: typer.Context,
    config: Config,
    output: Output,
    data: Data = None,
    tokens: Tokens = None,
    cache: Cache = Path("runs/cache"),
    max_minutes: Minutes = None,
    threads: Threads = None,
    device: Device = "auto",
    resume: Resume = False,
) -> None:
    """Trains a tokenizer or a generator, as the command is called."""
    import torch  # slow to import; other packages come with the extra

    from models.runtime.device_names import select_device
    from models.training.distributed import ProcessFailed
    from models.training.loop import Diverged
    from models.training.run import RunOptions, find_config, train_generator, train_tokenizer

    is_generator = context.info_name == "generator"
    source = _source(data, tokens, is_generator)
    if threads is not None:
        torch.set_num_threads(threads)
    on = select_device(device, index=int(os.environ.get("LOCAL_RANK", "0")))
    if on.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as published
    console = Console(stderr=True, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    options = RunOptions(
        data=source,
        output=output,
        cache=cache,
        device=on,
        max_minutes=max_minutes,
        resume=resume,
        from_tokens=data is None,
    )
    try:
        with _Bars(console) as bars, _stop_on_signals(bars):
            train_network = train_generator if is_generator else train_tokenizer
            figures = train_network(find_config(config), options, bars)
    except (Diverged, ProcessFailed) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(
            f"{error.strerror or error}: {error.filename or output}; the previously saved state is intact"
        ) from error
    names = [name for name in figures if name.startswith(("validation", "codes", "entropy", "seam"))]
    console.print(f"{output / 'checkpoint'}: " + "  ".join(f"{name} {figures[name]:.5g}" for name in names))


@train.command("reorder", help=_REORDER_HELP)
def reorder_tokens(
    tokenizer: Annotated[str, typer.Argument(help="A one-stage tokenizer: name, folder, file or hub id.")],
    data: Annotated[Path, typer.Option(help="Dataset, as for titok train tokenizer.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoints.")],
    generator: Annotated[str | None, typer.Option(help="Its generator: name, folder, file or hub id.")] = None,
    cache: Cache = Path("runs/cache"),
) -> None:
    """Reorders a tokenizer's tokens."""
    from models.training.token_order import reorder  # slow to import

    with _Bars(Console(stderr=True)) as bars:
        progress = partial(bars.on_prepare, "decoding train")
        order = reorder(tokenizer, generator, data=data, cache=cache, output=output, progress=progress)
    typer.echo(" ".join(map(str, order)))


def _source(data: Path | None, tokens: Path | None, is_generator: bool) -> Path:
    if tokens is not None and not is_generator:
        raise CommandError("a tokenizer is trained on images: give --data instead of --tokens")
    source = data or tokens
    if source is None or (data and tokens):
        raise CommandError("give either --data or --tokens" if is_generator else "give --data")
    return source


class _Bars:
    """Progress bars: preparation, then training steps with the losses and images per second."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.1f} %")
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._tasks: dict[str, TaskID] = {}
        self.is_stopping = False

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_prepare(self, what: str, done: int, total: int | None) -> None:
        """Shows the progress of a preparation."""
        self._progress.update(self._bar(what), completed=done, total=total)

    def on_step(self, step: int, progress: float, figures: dict[str, float]) -> None:
        """Shows the progress of training."""
        names = ("loss", "pixels", "perceptual", "adversarial", "proxy")
        losses = "  ".join(f"{name} {figures[name]:.4f}" for name in names if name in figures)
        speed = f"{figures['images_per_second']:.0f} images/s"
        self._progress.update(self._bar("training"), completed=progress, description=f"step {step}  {losses}  {speed}")

    def should_stop(self) -> bool:
        """Whether a signal has stopped the run."""
        return self.is_stopping

    def _bar(self, name: str) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0 if name == "training" else None)
        return self._tasks[name]


@contextmanager
def _stop_on_signals(bars: _Bars) -> Iterator[None]:
    """SIGINT or SIGTERM stops the run after the current step, with everything saved; a second signal stops it at once."""

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def end(_number: int, _frame: FrameType | None) -> None:
        bars.is_stopping = True
        restore()

    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()
