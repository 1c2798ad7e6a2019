"""The log of a run: ``log.csv``, TensorBoard events, and a picture at every evaluation.

::

    output/log.csv                 a row every ten steps
    output/tensorboard/            the same figures and pictures; ``tensorboard --logdir output``
    output/pictures/000250.png     validation images above, their reconstructions below
"""

import csv
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from models.atomic_files import write_atomically


class TrainingLog:
    """Writes the log to ``output``; rows after the ``step`` that a run resumes from are removed."""

    def __init__(self, output: Path, step: int) -> None:
        self._folder = output
        self._file = output / "log.csv"
        output.mkdir(parents=True, exist_ok=True)
        self._columns: list[str] = []
        self._rewrite([row for row in self._rows() if int(row["step"]) <= step] if step else [])
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=step)

    def write(self, figures: dict[str, float]) -> None:
        """Adds a row; ``figures`` includes ``step``."""
        for name, value in figures.items():
            if name != "step":
                self._board.add_scalar(name, value, int(figures["step"]))
        row = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in figures.items()}
        if set(row) <= set(self._columns):
            with self._file.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite([*self._rows(), row])

    def save_picture(self, step: int, picture: Tensor | None) -> None:
        """Saves a picture uint8 [H, W, 3], if there is one."""
        if picture is None:
            return
        image = Image.fromarray(picture.cpu().numpy())
        write_atomically(self._folder / "pictures" / f"{step:06d}.png", lambda file: image.save(file, "png"))
        self._board.add_image("reconstructions", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes the TensorBoard events."""
        self._board.close()

    def _rows(self) -> list[dict[str, str]]:
        if not self._file.exists():
            return []
        with self._file.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        with self._file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
