"""What commands print on standard error: messages and progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SOME_BROKEN = 3
"""Exit code of a command that finished, but skipped broken images."""

console = Console(stderr=True)

_WIDTH = 200  # characters of a table that is not printed on a terminal


def say(text: str, *, style: str | None = None) -> None:
    """Prints a message as it is: without markup, highlighting or line breaks."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def output_console() -> Console:
    """Standard output, wide enough for tables where it is no terminal."""
    output = Console(highlight=False)
    return output if output.is_terminal else Console(highlight=False, width=_WIDTH)


@contextmanager
def image_progress(description: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar on a terminal. Yields a function to call with the images done and the broken ones of them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[broken]} broken"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, broken=0)

        def advance(done: int, broken: int) -> None:
            progress.update(task, advance=done, broken=progress.tasks[task].fields["broken"] + broken)

        yield advance
