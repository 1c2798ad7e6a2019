"""The events of a generate request: every sampling step as it is done, then every image, then what makes them again.

::

    engine ─ on_step ─> StepFeed ─────────────> event: step     of the newest a preview, where there is time for one
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
import numpy.typing as npt

from service.api.schemas import GeneratedItem, StepEvent
from service.http.problems import Problem
from service.http.sse import event
from service.operations.context import ServiceContext
from service.operations.generation import Generation
from service.operations.rendering import as_base64, image_media_type, render
from service.telemetry.timings import RequestTimings

__all__ = ["MAX_WAITING_STEPS", "PREVIEW_SECONDS", "GenerationStream", "Step", "StepFeed"]

Ids = npt.NDArray[np.int64]

MAX_WAITING_STEPS = 256  # of a request, for a client that reads slowly
PREVIEW_SECONDS = 5.0  # that a step waits for its preview
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


class StepFeed:
    """Steps on their way from the engine, which never waits, to a client that may be slow.

    Beyond ``MAX_WAITING_STEPS`` the oldest are dropped, which leaves a gap in the numbers of their image's steps.
    """

    def __init__(self) -> None:
        self._steps: deque[Step] = deque(maxlen=MAX_WAITING_STEPS)
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, index: int, step: int, tokens: Ids, sampled: Ids) -> None:
        """See ``service.engine.StepCallback``."""
        self._steps.append(Step(index, step, tokens, sampled))
        self._changed.set()

    def close(self) -> None:
        """No step will come any more."""
        self._closed = True
        self._changed.set()

    async def wait(self) -> bool:
        """Waits for a step; False if none is left and none will come."""
        while not self._steps and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._steps)

    def newest(self) -> list[Step]:
        """The newest waiting step of each image."""
        return list({step.index: step for step in self._steps}.values())

    def take(self) -> Step | None:
        """The oldest waiting step."""
        return self._steps.popleft() if self._steps else None


@dataclass(frozen=True, kw_only=True)
class GenerationStream:
    """One request's events; ``media_type`` and ``quality`` are those of its images, ``previews`` are JPEG."""

    context: ServiceContext
    generation: Generation
    media_type: str
    quality: int | None
    previews: bool
    deadline: float
    timings: RequestTimings

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events on the wire. Raises the problem that ends them early; closing it ends the engine's work."""
        feed = StepFeed()
        sampling = asyncio.ensure_future(
            self.generation.run(self.context, deadline=self.deadline, timings=self.timings, on_step=feed.put)
        )
        sampling.add_done_callback(lambda _: feed.close())
        # Made while steps are still being sent, so that a slow client does not make them late.
        images = asyncio.ensure_future(self._images(sampling))
        try:
            while await feed.wait():
                # One decoding at a time, of what is newest when it begins: a slow one means fewer previews, not more work.
                pictures = await self._pictures(feed.newest(), sampling) if self.previews else {}
                while (step := feed.take()) is not None:
                    yield self._step(step, pictures.get((step.index, step.step)))
            for item in await images:
                yield event("image", item.model_dump_json())
        finally:
            for work in (images, sampling):
                work.cancel()
            await asyncio.gather(images, sampling, return_exceptions=True)
        yield event("done", self.generation.facts(self.context).model_dump_json())

    async def _images(self, sampling: asyncio.Future[Ids]) -> list[GeneratedItem]:
        tokens = await sampling
        rendered = await render(
            self.context, tokens, self.media_type, self.quality, deadline=self.deadline, timings=self.timings
        )
        return self.generation.items(self.context, tokens, rendered, self.media_type)

    def _step(self, step: Step, picture: bytes | None) -> bytes:
        mask = self.context.model_info.code_format.codebook_size
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
        """JPEG files by index and step; none where they cannot be had in time, or the images themselves will be there."""
        unfinished = [step for step in steps if step.step < self.generation.settings.steps]
        if not unfinished:
            return {}
        guesses = np.stack([step.sampled for step in unfinished])
        # With a stopwatch of their own: what previews take is no part of what the images took.
        rendering = asyncio.ensure_future(
            render(self.context, guesses, _PREVIEW_TYPE, self.quality, deadline=self.deadline, timings=RequestTimings())
        )
        either: set[asyncio.Future[Any]] = {rendering, sampling}
        try:
            await asyncio.wait(either, timeout=PREVIEW_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            files = rendering.result().files if rendering.done() else []
        except Problem:
            files = []
        finally:
            rendering.cancel()
            await asyncio.gather(rendering, return_exceptions=True)
        return {(step.index, step.step): file for step, file in zip(unfinished, files, strict=False)}
