"""New images of a class: the request to the generator, and its seeds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from models.arrays import Ids
from models.sampling.settings import SamplingSettings
from service.engine import Engine, GenerateItem, StepCallback
from service.errors import ErrorDetail
from service.operations.errors import InvalidArgument
from service.telemetry.timings import RequestTimings

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Images to generate: their class id (None: no class), their sampling settings, and a seed for each."""

    label: int | None
    settings: SamplingSettings
    seeds: tuple[int, ...]

    async def run(
        self, engine: Engine, *, deadline: float, timings: RequestTimings, on_step: StepCallback | None = None
    ) -> Ids:
        """Ids int64 [n, K]. Raises ``EngineError``."""
        items = [GenerateItem(label=self.label, seed=seed, settings=self.settings) for seed in self.seeds]
        timings.record_image_count(len(items))
        generated = await engine.generate(items, deadline=deadline, on_step=on_step)
        timings.add_engine(generated.timing)
        return generated.tokens


def random_seeds(count: int) -> tuple[int, ...]:
    """Random 32-bit seeds: short enough to copy by hand, and exact as a JavaScript number."""
    return tuple(secrets.randbelow(2**32) for _ in range(count))


def consecutive_seeds(first: int, count: int, *, pointer: str = "/seed") -> tuple[int, ...]:
    """``first``, ``first + 1``, ... up to ``MAX_SEED``. Raises ``InvalidArgument`` where one is above 2**63 - 1."""
    if first + count - 1 > MAX_SEED:
        raise InvalidArgument(
            f"Image {count} would have the seed {first + count - 1}; the largest is {MAX_SEED}.",
            errors=[
                ErrorDetail(pointer=pointer, detail="too large for n images", value=first, expected=f"0..{MAX_SEED}")
            ],
        )
    return tuple(range(first, first + count))
