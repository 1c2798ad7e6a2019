"""A checked generate request: what the engine is asked for, and what its answers have in common."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from models.sampling.settings import SamplingSettings
from service.api.schemas import GeneratedItem, GenerateRequest, GenerationFacts
from service.engine import GenerateItem, StepCallback
from service.http.problems import InvalidRequest, ProblemDetail
from service.operations.context import ServiceContext
from service.operations.rendering import Rendered, as_base64
from service.telemetry.timings import RequestTimings

__all__ = ["Generation", "random_seeds"]

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Images to make: their class (None: of no class), their sampling settings, and a seed for each."""

    label: int | None
    settings: SamplingSettings
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, body: GenerateRequest, context: ServiceContext) -> Generation:
        """What a request's body asks for. Raises the problem that applies."""
        presets = context.generator.presets
        context.check_model(body.model)
        context.check_count(body.n, context.settings.max_generate, "/n")
        return cls(
            label=context.classes.resolve(body.class_),
            settings=_settings(body, presets[body.preset]),
            seeds=_seeds(body),
        )

    async def run(
        self, context: ServiceContext, *, deadline: float, timings: RequestTimings, on_step: StepCallback | None = None
    ) -> npt.NDArray[np.int64]:
        """Ids int64 [n, K], through the generate lane. Raises the problem that the engine's refusal becomes."""
        items = [GenerateItem(label=self.label, seed=seed, settings=self.settings) for seed in self.seeds]
        timings.record_image_count(len(items))
        with context.engine_call():
            generated = await context.engine.generate(items, deadline=deadline, on_step=on_step)
        context.note_timing(timings, generated.timing)
        return generated.tokens

    def facts(self, context: ServiceContext) -> GenerationFacts:
        """What makes the images again, beside their seeds."""
        return GenerationFacts(
            model=context.model_info.name,
            revision=context.model_info.revision,
            generator_revision=context.generator.revision,
            class_id=self.label,
            class_name=None if self.label is None else context.classes.names[self.label][0],
            settings=asdict(self.settings),
        )

    def items(
        self, context: ServiceContext, tokens: npt.NDArray[np.int64], rendered: Rendered, media_type: str
    ) -> list[GeneratedItem]:
        """The images of an answer, from ids int64 [n, K] and their files of one media type."""
        codes = context.model_info.code_format.to_text(tokens)
        return [
            GeneratedItem(
                index=index,
                tokens=tokens[index].tolist(),
                code=codes[index],
                seed=self.seeds[index],
                image=as_base64(file),
                content_type=media_type,
            )
            for index, file in enumerate(rendered.files)
        ]


def _settings(body: GenerateRequest, preset: SamplingSettings) -> SamplingSettings:
    changes = {
        name: getattr(body, name)
        for name in ("steps", "guidance_scale", "guidance_decay", "temperature")
        if getattr(body, name) is not None
    }
    return replace(preset, **changes)


def random_seeds(count: int) -> tuple[int, ...]:
    """Seeds short enough for a person to copy, and for a JavaScript number."""
    return tuple(secrets.randbelow(2**32) for _ in range(count))


def _seeds(body: GenerateRequest) -> tuple[int, ...]:
    if body.seed is None:
        return random_seeds(body.n)
    if body.seed + body.n - 1 > _MAX_SEED:
        raise InvalidRequest(
            f"Image {body.n} would have the seed {body.seed + body.n - 1}; the largest is {_MAX_SEED}.",
            errors=[
                ProblemDetail(
                    pointer="/seed", detail="too large for n images", value=body.seed, expected=f"0..{_MAX_SEED}"
                )
            ],
        )
    return tuple(range(body.seed, body.seed + body.n))
