"""The health document of one application.

::

    {"status", "reason",           ready, or why not
     "requests": {op: n},          in progress
     "api_keys",                   ok, stale or unreadable (ReloadingKeyStore.state)
     "lanes": {op: {...}},         images and bytes in the queues, images at the devices
     "cache", "rates": {...},      where codes are stored and images counted; what fails there (``StoreStatus``)
     "metrics": {...},             whether they are counted where they are exported
     "model", "revision", ...}     the models served, once they are loaded
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from service.api.state import ApiState
from service.telemetry.metric_files import metrics_error


def application_health(state: ApiState) -> dict[str, Any]:
    """The document, as JSON values."""
    readiness, info = state.readiness, state.operations.models.loaded
    document = {
        "status": readiness.name,
        "reason": readiness.reason,
        "requests": dict(state.requests),
        "api_keys": state.keys.state,
        "lanes": {lane: asdict(counts) for lane, counts in state.operations.engine.snapshot().items()},
        "cache": state.operations.cache.status.document(),
        "rates": state.rate_limiter.status.document(),
        "metrics": {"status": "ok"} if (error := metrics_error()) is None else {"status": "failing", "reason": error},
    }
    if info is None:
        return document
    return document | {
        "model": info.name,
        "revision": info.revision,
        "device": info.device,
        "precision": dict(info.precision),
        "generator": info.generator.revision if info.generator else None,
    }


def public_health(state: ApiState) -> dict[str, Any]:
    """The document without the words of Redis, which contain its address, and of the system, which contain a path."""
    document = application_health(state)
    for part in ("cache", "rates", "metrics"):
        document[part] = {name: value for name, value in document[part].items() if name != "reason"}
    return document
