"""The parts of one application that its routes use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from fastapi import Request

from service.api.access.key_store import ReloadingKeyStore
from service.api.access.rate_limiter import RateLimiter
from service.cache import KeySpace
from service.engine import EngineState
from service.errors import ErrorDetail
from service.operations.build import Operations
from service.operations.errors import TooManyImages
from service.operations.rendered_images import RenderedImageCache
from service.settings import Settings
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.inference.model_info import ModelInfo


_key_space = lru_cache(1024)(KeySpace)  # the same for most requests


@dataclass(eq=False, kw_only=True)
class ApiState:
    """Settings, API keys, operations and metrics. ``requests``: how many are in progress, by operation."""

    settings: Settings
    keys: ReloadingKeyStore
    rate_limiter: RateLimiter
    operations: Operations
    metrics: Metrics
    rendered_images: RenderedImageCache
    requests: Counter[str] = field(default_factory=Counter)
    is_draining: bool = False

    @staticmethod
    def of(request: Request) -> ApiState:
        """The state of the application that a request came to."""
        state: ApiState = request.app.state.api
        return state

    @property
    def info(self) -> ModelInfo:
        """The models served. Raises ``ModelsNotLoaded``."""
        return self.operations.models.info

    @property
    def max_json_values(self) -> int:
        """Maximum values in a JSON body: twice as many as the largest request has, and some more."""
        return 10_000 + 2 * self.settings.max_images * (self.info.latent_format.num_tokens + 1)

    @property
    def readiness(self) -> EngineState:
        """The engine's state; not ready while the models or the API keys are unknown, or the service drains."""
        state = self.operations.engine.state
        if self.is_draining and state.name in ("starting", "ready"):
            return EngineState(name="draining", reason="the service is shutting down")
        if state.is_ready and self.operations.models.loaded is None:
            return EngineState(name="starting", reason="the models are not known yet")
        if state.is_ready and self.keys.state == "unreadable":
            return EngineState(name="failed", reason="the API keys cannot be read; the log says why")
        return state

    @staticmethod
    def deadline(request: Request) -> float:
        """The end of a request's time, on ``time.monotonic``; set by the middleware ``Deadlines``."""
        deadline: float = request.state.deadline
        return deadline

    def key_space(self, request: Request, *, latents: bool = False) -> KeySpace:
        """The cache keys that a request for codes or latents reads and writes: shared by all callers, or those of its API
        key.
        """
        caller = request.state.caller if self.settings.cache_scope == "key" else None
        return _key_space(self.settings.cache_namespace, self.info.name, self.info.revision, caller, latents)


def check_image_count(count: int, limit: int, pointer: str) -> None:
    """Raises ``TooManyImages`` for more images than one request may have."""
    if count > limit:
        raise TooManyImages(
            f"The request has {count} images; at most {limit} are allowed.",
            errors=[ErrorDetail(pointer=pointer, detail="too many images", value=count, expected=f"at most {limit}")],
        )
