"""The operations of one process, wired to one engine and one cache."""

from __future__ import annotations

from dataclasses import dataclass

from service.cache import CodeCache
from service.engine import Engine, LaneLimits
from service.operations.image_threads import ImageThreads
from service.operations.preprocessing import ImagePreprocessor
from service.operations.rendering import Renderer
from service.operations.served_models import ServedModels
from service.operations.tokenization import ImageTokenizer
from service.settings import Settings
from service.telemetry.metrics import Metrics

GATHERING_WAIT_SECONDS, ADMISSION_WAIT_SECONDS = 0.05, 2.0


@dataclass(frozen=True, kw_only=True)
class Operations:
    """The models served and the operations on them; ``engine`` generates."""

    engine: Engine
    cache: CodeCache
    models: ServedModels
    threads: ImageThreads
    preprocessor: ImagePreprocessor
    tokenizer: ImageTokenizer
    renderer: Renderer


def build_operations(settings: Settings, *, engine: Engine, cache: CodeCache, metrics: Metrics) -> Operations:
    """Operations on an engine, whose models become known when it calls ``models.set_model_info``."""
    models = ServedModels(engine)
    threads = ImageThreads(
        settings.image_threads, max_bytes=settings.decoded_bytes_in_flight, max_calls=2 * settings.queue_images
    )
    preprocessor = ImagePreprocessor(threads=threads, models=models, metrics=metrics, settings=settings)
    tokenizer = ImageTokenizer(
        engine=engine,
        cache=cache,
        is_cached=settings.cache != "off",
        claim_seconds=settings.cache_lease,
        models=models,
        preprocessor=preprocessor,
        metrics=metrics,
    )
    return Operations(
        engine=engine,
        cache=cache,
        models=models,
        threads=threads,
        preprocessor=preprocessor,
        tokenizer=tokenizer,
        renderer=Renderer(engine=engine, threads=threads, metrics=metrics),
    )


def lane_limits(settings: Settings) -> LaneLimits:
    """Limits of each queue of the engine."""
    return LaneLimits(
        max_batch_size=settings.max_batch_size or None,
        max_images=settings.queue_images,
        max_bytes=settings.queue_bytes,
        max_wait=settings.max_wait_ms / 1000,
        gathering_wait=GATHERING_WAIT_SECONDS,
        admission_wait=ADMISSION_WAIT_SECONDS,
    )
