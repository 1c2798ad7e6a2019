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


def told(**statuses: Any) -> CollectorRegistry:
    """Of workers by their devices."""
    registry = CollectorRegistry()
    registry.register(StateCollector(lambda: gpu_metrics(statuses)))
    registry.register(StateCollector(lambda: padding_metrics(statuses)))
    return registry


def test_requests_in_progress_and_queued_images_are_summed_over_front_ends() -> None:
    waiting, idle = ({"queued_images": queued, "queued_bytes": 0, "active_images": 1} for queued in (3, 0))
    front_ends = [
        cast(Child, SimpleNamespace(name=name, status={"health": health}, **CHILD))
        for name, health in {
            "front end 0": {"status": "ready", "requests": {"encode": 2, "other": 0}, "lanes": {"encode": waiting}},
            "front end 1": {"status": "ready", "requests": {"encode": 1}, "lanes": {"encode": waiting, "decode": idle}},
        }.items()
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
