"""What routes work with: the engine, the cache, the threads for images, and the information on the served models."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from service.cache import CodeCache, KeySpace
from service.engine import DeadlineExceeded as EngineDeadlineExceeded
from service.engine import DeviceFailed, Engine, EngineState, EngineStopped, LaneLimits, QueueFull, Timing
from service.engine import WorkerCrashed as EngineWorkerCrashed
from service.http.problems import (
    ContentTooLarge,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    ProblemDetail,
    RevisionMismatch,
    TooManyRequests,
    Unavailable,
    UnknownModel,
    WorkerCrashed,
)
from service.imaging.decoding_memory import DecodingMemory
from service.inference.model_info import GeneratorInfo, ModelInfo
from service.operations.classes import ClassIndex
from service.operations.rendered_images import PictureCache
from service.operations.single_flight import Flights
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.timings import RequestTimings

__all__ = ["ServiceContext", "TokenizedImage", "lane_limits"]

T = TypeVar("T")
TIMEOUT_HEADER = "X-Request-Timeout-Ms"


@dataclass(frozen=True)
class TokenizedImage:
    """An upload's ids, packed as ``CodeFormat`` does, and whether the cache knew them."""

    packed: bytes
    original_size: tuple[int, int]
    cached: bool


def lane_limits(settings: Settings) -> LaneLimits:
    """What each lane of an engine may hold."""
    return LaneLimits(
        max_batch_size=settings.max_batch_size or None,
        max_images=settings.queue_images,
        max_bytes=settings.queue_bytes,
        max_wait=settings.max_wait_ms / 1000,
    )


class ServiceContext:
    """One application's parts. ``model_info`` comes with the first successful start of the engine. ``requests``: how many
    are under way, by operation.
    """

    def __init__(self, settings: Settings, *, engine: Engine, cache: CodeCache, metrics: Metrics) -> None:
        self.settings = settings
        self.engine = engine
        self.cache = cache
        self.metrics = metrics
        self.loaded: ModelInfo | None = None
        self.pictures = PictureCache(settings.picture_cache_bytes)
        self.decoding_memory = DecodingMemory(settings.decoded_bytes_in_flight)
        self.flights: Flights[TokenizedImage] = Flights()
        self.requests: Counter[str] = Counter()
        self.draining = False

    @staticmethod
    def of(request: Request) -> ServiceContext:
        """The parts of the application that a request came to."""
        context: ServiceContext = request.app.state.context
        return context

    @property
    def state(self) -> EngineState:
        """The engine's, but ready only once ``model_info`` is set, and not while the service drains."""
        state = self.engine.state
        if self.draining and state.name in ("starting", "ready"):
            return EngineState(name="draining", reason="the service is shutting down")
        if state.is_ready and self.loaded is None:
            return EngineState(name="starting", reason="the models are not known yet")
        return state

    @property
    def model_info(self) -> ModelInfo:
        """The models served. Raises ``Unavailable`` while there are none, saying why."""
        if self.loaded is None:
            raise Unavailable(f"No models yet: {self.engine.state.reason}.", retry_after=2.0)
        return self.loaded

    @property
    def generator(self) -> GeneratorInfo:
        """The generator served. Raises ``NotFound`` if there is none."""
        if self.model_info.generator is None:
            raise NotFound(f"No generator is served beside {self.model_info.name}.")
        return self.model_info.generator

    @cached_property
    def classes(self) -> ClassIndex:
        """The generator's classes, by name."""
        return ClassIndex(self.generator.class_names)

    def keys_for(self, request: Request) -> KeySpace:
        """The names of codes in the cache: everybody's, or those of the request's API key."""
        settings, info = self.settings, self.model_info
        scope = request.state.caller if settings.cache_scope == "key" else None
        return _key_space(settings.cache_namespace, info.name, info.revision, scope)

    @cached_property
    def _image_threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self.settings.image_threads)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Runs image work in one of the threads set aside for it."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._image_threads)

    async def map_in_threads(self, function: Callable[..., T], arguments: list[tuple[Any, ...]]) -> list[T]:
        """Runs image work in parallel, in order; the first failure is raised and the rest is left."""
        if len(arguments) == 1:
            return [await self.in_thread(function, *arguments[0])]
        tasks = [asyncio.ensure_future(self.in_thread(function, *args)) for args in arguments]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def check_model(self, name: str | None, revision: str | None = None) -> None:
        """Refuses what belongs to another tokenizer. Raises ``UnknownModel`` or ``RevisionMismatch``."""
        info = self.model_info
        if name is not None and name != info.name:
            raise UnknownModel(
                f"No model {name[:80]!r} is served here; {info.name} is.",
                errors=[ProblemDetail(pointer="/model", detail="not served", value=name[:80], expected=info.name)],
            )
        if revision is not None and revision != info.revision:
            raise RevisionMismatch(
                f"The tokens are of revision {revision[:80]!r}; {info.name} is served in revision {info.revision}.",
                errors=[
                    ProblemDetail(pointer="/revision", detail="not served", value=revision[:80], expected=info.revision)
                ],
            )

    def check_count(self, count: int, limit: int, pointer: str) -> None:
        """Refuses more images than one request may have. Raises ``ContentTooLarge``."""
        if count > limit:
            raise ContentTooLarge(
                f"The request asks for {count} images; at most {limit} are taken.",
                errors=[
                    ProblemDetail(pointer=pointer, detail="too many images", value=count, expected=f"at most {limit}")
                ],
            )

    def deadline(self, request: Request) -> float:
        """When a request's time is up, on the monotonic clock: the setting, or less if the client says so."""
        seconds = self.settings.request_timeout
        given = request.headers.get(TIMEOUT_HEADER)
        if given is not None:
            if not (given.isascii() and given.isdigit() and int(given[:10]) >= 1 and len(given) <= 10):
                raise InvalidRequest(
                    f"{TIMEOUT_HEADER} is {given[:40]!r}; a whole number of milliseconds from 1 is expected.",
                    errors=[ProblemDetail(pointer=f"header/{TIMEOUT_HEADER}", detail="not a time", value=given[:40])],
                )
            seconds = min(seconds, int(given) / 1000)
        return time.monotonic() + seconds

    async def while_connected(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """Runs work until it is done or the client has gone; then it is cancelled, and ``ClientDisconnect`` raised.

        The request's body must have been read: what comes after it can only be the disconnect.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is answered in a task")
        is_gone = False

        async def watch() -> None:
            nonlocal is_gone
            await _disconnected(request)
            is_gone = True
            task.cancel()

        # Beside the work, not the work beside it: a task that is done must be waited for, and an answer waits with it.
        watcher = asyncio.ensure_future(watch())
        try:
            return await work
        except asyncio.CancelledError:
            if is_gone and task.cancelling() == 1:
                raise ClientDisconnect from None
            raise  # the server gives up on it
        finally:
            watcher.cancel()
            if is_gone:
                task.uncancel()

    @contextmanager
    def engine_call(self) -> Iterator[None]:
        """Turns what the engine raises into the problem that a client understands."""
        try:
            yield
        except QueueFull as error:
            if error.retry_after is None:
                raise ContentTooLarge(f"{error}. Split the request.") from None
            raise TooManyRequests(
                f"{error}. Try again after the time in Retry-After.", retry_after=error.retry_after
            ) from None
        except EngineDeadlineExceeded:
            raise DeadlineExceeded(
                f"The answer was not ready in time; the limit is {self.settings.request_timeout:g} seconds, "
                f"or less by {TIMEOUT_HEADER}."
            ) from None
        except EngineStopped as error:
            raise Unavailable(f"{error}.", retry_after=2.0) from None
        except EngineWorkerCrashed as error:
            raise WorkerCrashed(f"{error}. It is not tried again.") from None
        except DeviceFailed as error:
            raise InternalError("The device failed on this request; the request id finds it in the log.") from error

    def note_timing(self, timings: RequestTimings, timing: Timing) -> None:
        """Adds what the engine measured to a request's timings."""
        timings.add("queue", timing.queue_seconds)
        timings.add("device", timing.device_seconds)


@lru_cache(maxsize=1024)
def _key_space(namespace: str, name: str, revision: str, scope: str | None) -> KeySpace:
    return KeySpace(namespace, name, revision, scope)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
