"""The server-sent events of a generate request: each sampling step, then each image, then what reproduces them.

::

    engine ─ on_step ─> waiting steps ────────> event: step     with a preview if there is time for one
       └──── result ──> decode lane ──────────> event: image    for each
                                         └────> event: done
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.arrays import Ids
from service.api.generation import generated_items, generation_facts
from service.api.image_responses import as_base64, image_media_type
from service.api.schemas.generation import GeneratedItem, StepEvent
from service.engine import EngineError
from service.http.sse import event
from service.operations.build import Operations
from service.operations.generation import Generation
from service.telemetry.timings import RequestTimings

MAX_WAITING_STEPS = 256  # of a slow client; the oldest are dropped, which leaves a gap in the step numbers of an image
PREVIEW_SECONDS = 5.0  # a step waits for its preview
_PREVIEW_TYPE = image_media_type("jpeg")


@dataclass(frozen=True, slots=True)
class Step:
    """An image after ``step`` steps: ``tokens`` int64 [K], the mask id where unknown, and ``sampled`` int64 [K], the
    guess of every token.
    """

    index: int
    step: int
    tokens: Ids
    sampled: Ids


@dataclass(frozen=True, kw_only=True)
class GenerationStream:
    """The events of one request. ``media_type`` and ``quality`` are those of its images; previews are JPEG."""

    operations: Operations
    generation: Generation
    media_type: str
    quality: int | None
    previews: bool
    deadline: float
    timings: RequestTimings

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The encoded events. Raises the error that ends them early; closing the generator cancels the engine's work."""
        steps: deque[Step] = deque(maxlen=MAX_WAITING_STEPS)
        changed = asyncio.Event()

        def put(index: int, step: int, tokens: Ids, sampled: Ids) -> None:
            steps.append(Step(index, step, tokens, sampled))
            changed.set()

        sampling = asyncio.ensure_future(
            self.generation.run(self.operations.engine, deadline=self.deadline, timings=self.timings, on_step=put)
        )
        sampling.add_done_callback(lambda _: changed.set())
        # Rendered while steps are still being sent, so that a slow client does not delay them.
        images = asyncio.ensure_future(self._images(sampling))
        try:
            while steps or not sampling.done():
                changed.clear()
                if not steps:
                    await changed.wait()
                # One decoding at a time, of the newest steps: slow decoding means fewer previews, not more work.
                newest = list({step.index: step for step in steps}.values())
                pictures = await self._pictures(newest, sampling) if self.previews else {}
                while steps:
                    step = steps.popleft()
                    yield self._step(step, pictures.get((step.index, step.step)))
            for item in await images:
                yield event("image", item.model_dump_json())
        finally:
            for work in (images, sampling):
                work.cancel()
            await asyncio.gather(images, sampling, return_exceptions=True)
        yield event("done", generation_facts(self.generation, self.operations.models).model_dump_json())

    async def _images(self, sampling: asyncio.Future[Ids]) -> list[GeneratedItem]:
        tokens = await sampling
        rendered = await self.operations.renderer.render(
            tokens, self.media_type, self.quality, deadline=self.deadline, timings=self.timings
        )
        return generated_items(self.generation, self.operations.models, tokens, rendered, self.media_type)

    def _step(self, step: Step, picture: bytes | None) -> bytes:
        mask = self.operations.models.info.code_format.codebook_size
        document = StepEvent(
            index=step.index,
            step=step.step,
            steps=self.generation.settings.steps,
            tokens=[None if token == mask else token for token in step.tokens.tolist()],
            known=int(np.count_nonzero(step.tokens != mask)),
            image=None if picture is None else as_base64(picture),
            content_type=None if picture is None else _PREVIEW_TYPE,
        )
        return event("step", document.model_dump_json(exclude_none=True))

    async def _pictures(self, steps: Sequence[Step], sampling: asyncio.Future[Ids]) -> dict[tuple[int, int], bytes]:
        """JPEG files by index and step; none if they are not ready in time, or the images themselves come next."""
        unfinished = [step for step in steps if step.step < self.generation.settings.steps]
        if not unfinished:
            return {}
        guesses = np.stack([step.sampled for step in unfinished])
        # With timings of their own: previews are not part of the images' timings.
        rendering = asyncio.ensure_future(
            self.operations.renderer.render(
                guesses, _PREVIEW_TYPE, self.quality, deadline=self.deadline, timings=RequestTimings()
            )
        )
        either: set[asyncio.Future[Any]] = {rendering, sampling}
        try:
            await asyncio.wait(either, timeout=PREVIEW_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            files = rendering.result().files if rendering.done() else []
        except EngineError:
            files = []
        finally:
            rendering.cancel()
            await asyncio.gather(rendering, return_exceptions=True)
        return {(step.index, step.step): file for step, file in zip(unfinished, files, strict=False)}
