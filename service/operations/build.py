"""The operations of one process, its engine and its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.cache import CodeCache
from service.engine import Engine, EngineObserver, LaneLimits, Link
from service.inference.model_info import ModelInfo
from service.operations.image_threads import ImageThreads
from service.operations.preprocessing import ImagePreprocessor
from service.operations.rendering import Renderer
from service.operations.served_models import ServedModels
from service.operations.tokenization import ImageTokenizer
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.observer import MetricsObserver

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


def build_operations(
    settings: Settings,
    links: Sequence[Link],
    *,
    cache: CodeCache,
    metrics: Metrics,
    observer: EngineObserver | None = None,
    on_failure: Callable[[BaseException], None] = lambda _: None,
) -> Operations:
    """Operations on a new engine, which is not started. ``links``, ``observer`` (default: that of ``metrics``) and
    ``on_failure``: see ``Engine``.
    """

    def set_model_info(info: ModelInfo) -> None:
        metrics.expect_device(info.device)
        models.set_model_info(info)

    engine = Engine(
        links,
        limits=_lane_limits(settings),
        observer=observer or MetricsObserver(metrics),
        on_model_info=set_model_info,
        on_failure=on_failure,
    )
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


def _lane_limits(settings: Settings) -> LaneLimits:
    """Limits of each queue of the engine."""
    return LaneLimits(
        max_batch_size=settings.max_batch_size or None,
        max_images=settings.queue_images,
        max_bytes=settings.queue_bytes,
        max_wait=settings.max_wait_ms / 1000,
        gathering_wait=GATHERING_WAIT_SECONDS,
        admission_wait=ADMISSION_WAIT_SECONDS,
    )
