"""Metrics of devices, from the statuses of their workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from service.processes.child import Child
from service.processes.health import service_health
from service.processes.state_metrics import (
    StateCollector,
    gpu_metrics,
    padding_metrics,
    service_metrics,
    worker_metrics,
    worker_state,
)

GPU = {
    "memory": {"allocated": 1, "reserved": 2, "total": 3},
    "out_of_memory": 0,
    "sensors": {"utilization": 0.5, "temperature": 61.0},
    "padding": {"encode": 0.25},
}

CHILD = {"pid": 1, "state": "ready", "reason": None, "uptime_seconds": 1.0, "restarts": 0, "last_death": None}

WORKING, FAILING = {"store": "redis", "status": "ok"}, {"store": "redis", "status": "failing"}
HEALTH = {
    "status": "ready",
    "reason": None,
    "requests": {},
    "lanes": {},
    "api_keys": "ok",
    "cache": WORKING,
    "rates": WORKING,
    "metrics": {"status": "ok"},
}


def told(**statuses: Any) -> CollectorRegistry:
    """Of workers by their devices."""
    registry = CollectorRegistry()
    registry.register(StateCollector(lambda: gpu_metrics(statuses)))
    registry.register(StateCollector(lambda: padding_metrics(statuses)))
    return registry


def front_end(name: str, *, is_accepting: bool = True, **health: Any) -> Child:
    document = {**HEALTH, **health}
    status = {"health": document, "is_accepting": is_accepting}
    return cast(Child, SimpleNamespace(**{**CHILD, "name": name, "status": status, "state": document["status"]}))


def test_requests_in_progress_and_queued_images_are_summed_over_front_ends() -> None:
    waiting, idle = ({"queued_images": queued, "queued_bytes": 0, "active_images": 1} for queued in (3, 0))
    front_ends = [
        front_end("front end 0", requests={"encode": 2, "other": 0}, lanes={"encode": waiting}),
        front_end("front end 1", requests={"encode": 1}, lanes={"encode": waiting, "decode": idle}),
    ]
    registry = CollectorRegistry()
    registry.register(StateCollector(lambda: service_metrics(service_health(front_ends, {}, draining=False))))
    for operation, count in {"encode": 3, "other": 0}.items():
        assert registry.get_sample_value("titok_requests_in_progress", {"op": operation}) == count
    for operation, count in {"encode": 6, "decode": 0}.items():
        assert registry.get_sample_value("titok_queue_images", {"op": operation}) == count


@pytest.mark.parametrize(
    ("state", "restarts", "up", "starting"),
    [("starting", 0, 0, 1), ("opening", 0, 0, 1), ("ready", 0, 1, 0), ("failed", 0, 0, 0), ("opening", 1, 0, 0)],
)
def test_only_the_first_start_of_a_worker_is_a_start(state: str, restarts: int, up: int, starting: int) -> None:
    worker = cast(Child, SimpleNamespace(state=state, restarts=restarts))
    registry = CollectorRegistry()
    registry.register(StateCollector(lambda: worker_metrics({"cpu": worker_state(worker)})))
    assert registry.get_sample_value("titok_worker_up", {"device": "cpu"}) == up
    assert registry.get_sample_value("titok_worker_starting", {"device": "cpu"}) == starting


def test_readiness_is_that_of_the_worst_front_end_that_accepts_connections() -> None:
    ready, failed = front_end("front end 0", model="mini"), front_end("front end 1", status="failed", reason="no link")
    starting = front_end("front end 2", status="starting", reason="the models are being loaded", is_accepting=False)
    dead = SimpleNamespace(**{**CHILD, "name": "worker cpu", "status": {}, "state": "restarting", "reason": "no luck"})
    workers = {"cpu": cast(Child, dead)}

    def health(*front_ends: Child) -> tuple[str, str | None]:
        document = service_health(front_ends, workers, draining=False)
        return document["status"], document["reason"]

    assert health(ready, starting) == ("ready", None)
    assert health(ready, failed, starting) == ("failed", "no link; worker cpu: no luck")
    assert health(starting) == ("starting", "the models are being loaded; worker cpu: no luck")
    assert health() == ("starting", "the front ends are being started; worker cpu: no luck")
    assert service_health([failed, ready], {}, draining=False)["model"] == "mini"


def test_keys_that_one_front_end_cannot_read_are_exported() -> None:
    for state, expected in {"ok": 1, "stale": 0, "unreadable": 0}.items():
        health = service_health([front_end("0"), front_end("1", api_keys=state)], {}, draining=False)
        registry = CollectorRegistry()
        registry.register(StateCollector(lambda health=health: service_metrics(health)))
        assert registry.get_sample_value("titok_api_keys_readable") == expected


def test_the_cache_of_the_service_fails_if_that_of_a_front_end_does() -> None:
    front_ends = [front_end("0"), front_end("1", cache=FAILING), front_end("2")]
    health = service_health(front_ends, {}, draining=False)
    assert (health["cache"], health["rates"]) == (FAILING, WORKING)


def test_utilization_and_temperature_of_a_gpu_are_exported() -> None:
    registry = told(gpu=GPU)
    assert registry.get_sample_value("titok_gpu_utilization_ratio", {"device": "gpu"}) == 0.5
    assert registry.get_sample_value("titok_gpu_temperature_celsius", {"device": "gpu"}) == 61
    assert registry.get_sample_value("titok_batch_padding_ratio", {"device": "gpu", "op": "encode"}) == 0.25


def test_a_gpu_without_sensors_exports_its_memory_only() -> None:
    registry = told(gpu=GPU | {"sensors": None})
    assert registry.get_sample_value("titok_gpu_memory_bytes", {"device": "gpu", "kind": "total"}) == 3
    assert registry.get_sample_value("titok_gpu_utilization_ratio", {"device": "gpu"}) is None


def test_a_worker_without_a_status_is_not_exported() -> None:
    registry = told(gpu={}, cpu={"memory": None, "padding": {"encode": 0.0}})
    assert registry.get_sample_value("titok_batch_padding_ratio", {"device": "cpu", "op": "encode"}) == 0
    assert registry.get_sample_value("titok_batch_padding_ratio", {"device": "gpu", "op": "encode"}) is None
