"""What each of two processes does that torchrun starts; see ``test_distributed``."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.data.datasets import InMemoryDataset
from models.errors import DataError
from models.training.config import DiscriminatorConfig, LossConfig, TokenizerRun
from models.training.distributed import ProcessFailed, process_group, rank, world_size
from models.training.generator import tokenize
from models.training.loop import train
from models.training.pixels import PixelTask
from models.training.pretrained import load_frozen_tokenizer

FAILS_AT, STOPS_AT = 6, 4


@dataclasses.dataclass(frozen=True)
class Recorded(InMemoryDataset):
    """Notes the crops of each batch; the process that ``fails`` cannot read one."""

    crops: list[list[list[float]]] = dataclasses.field(default_factory=list)
    fails: bool = False

    def batch(self, rows: np.ndarray, positions: np.ndarray | None = None) -> torch.Tensor:
        if positions is not None:
            if self.fails and len(self.crops) == FAILS_AT:
                raise DataError("more than 1 % of the images cannot be read")
            self.crops.append(positions.tolist())
        return super().batch(rows, positions)


def raised(run: Callable[[], object]) -> list[str]:
    try:
        run()
    except (DataError, ProcessFailed) as error:
        return [type(error).__name__, str(error)]
    return []


def main(run: TokenizerRun, photographs: InMemoryDataset, output: Path) -> dict[str, Any]:
    """The results of this process."""
    results: dict[str, Any] = {}
    mine = dataclasses.replace(photographs, names=("cat", "dog"))
    seen = Recorded(photographs.images, photographs.labels)
    train(PixelTask(run, seen, photographs), output / "two")
    results["crops"] = seen.crops

    failing = Recorded(photographs.images, photographs.labels, fails=rank() == 1)
    task = PixelTask(run, failing, photographs)
    results["failure"] = raised(lambda: train(task, output / "failed"))

    steps: list[int] = []
    asked = iter([False] * (STOPS_AT - 1) + [rank() == 1] * 100)
    train(
        PixelTask(run, photographs, photographs),
        output / "stopped",
        report=lambda step, *_: steps.append(step),
        should_stop=lambda: next(asked),
    )
    results["steps"] = steps

    results |= _adversarial(run, photographs, output / "adversarial")
    results |= _tokenized(mine, output)
    return results


def _adversarial(run: TokenizerRun, photographs: InMemoryDataset, output: Path) -> dict[str, Any]:
    adversarial = dataclasses.replace(
        run,
        network=dataclasses.replace(run.network, quantize_mode="vae"),
        losses=LossConfig(adversarial_weight=0.1),
        discriminator=DiscriminatorConfig(channels=4),
        schedule=dataclasses.replace(run.schedule, micro_batches=2, steps=4),
    )
    task = PixelTask(adversarial, photographs, photographs)
    train(task, output)
    adversary = task.reconstruction_loss.adversary
    assert adversary is not None
    weights = [
        float(sum(p.double().abs().sum() for p in module.parameters()))
        for module in (task.network, adversary.discriminator)
    ]
    return {"weights": weights, "dropout": _dropout(task)}


def _tokenized(photographs: InMemoryDataset, output: Path) -> dict[str, Any]:
    tokenizer = load_frozen_tokenizer(str(output / "two" / "checkpoint"))
    encoded: list[int] = []
    encode = tokenizer.network.encode

    def counted(images: torch.Tensor) -> Any:
        encoded.append(len(images))
        return encode(images)

    tokenizer.network.encode = counted  # type: ignore[method-assign]
    progress: list[tuple[int, int]] = []
    tokens = tokenize(
        photographs,
        {"cat": "cat", "dog": "dog"},
        tokenizer,
        cache=output / f"cache-{rank()}",
        progress=lambda *done: progress.append(done),
    )
    return {"tokens": tokens.ids.tolist(), "encoded": encoded, "progress": progress}


def _dropout(task: PixelTask) -> list[float]:
    """Random numbers of the process's own generator in the first step, as dropout draws them."""
    drawn: list[float] = []
    task.losses = lambda _: drawn.extend(torch.rand(3).tolist()) or {}  # type: ignore[method-assign, assignment, func-returns-value]
    from models.training.loop import _Trainer
    from models.training.seeding import seeded_generator
    from models.training.task import Step

    _Trainer(task, None, lambda: 0.0)._losses(Step(0, 0.0, seeded_generator(42, 0, 0)))
    return drawn


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with process_group(torch.device("cpu")):
        assert world_size() == 2
        for number in range(2):  # each process writes a cache of its own, as on two machines
            (folder / f"cache-{number}").mkdir(exist_ok=True)
        found = main(*pickle.loads((folder / "run.pickle").read_bytes()), folder)  # noqa: S301  of this test
        (folder / f"results-{rank()}.json").write_text(json.dumps(found))
