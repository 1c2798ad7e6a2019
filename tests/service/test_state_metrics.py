"""What Prometheus is told of devices, from what their workers say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from service.child import Child
from service.state_metrics import GpusCollector, PaddingCollector

GPU = {
    "memory": {"allocated": 1, "reserved": 2, "total": 3},
    "out_of_memory": 0,
    "sensors": {"utilization": 0.5, "temperature": 61.0},
    "padding": {"encode": 0.25},
}


def told(**statuses: Any) -> CollectorRegistry:
    """Of workers by their devices."""
    workers = {device: cast(Child, SimpleNamespace(status=status)) for device, status in statuses.items()}
    registry = CollectorRegistry()
    registry.register(GpusCollector(workers))
    registry.register(PaddingCollector(lambda: statuses))
    return registry


def test_a_gpu_tells_how_busy_and_how_hot_it_is() -> None:
    registry = told(gpu=GPU)
    assert registry.get_sample_value("titok_gpu_utilization_ratio", {"device": "gpu"}) == 0.5
    assert registry.get_sample_value("titok_gpu_temperature_celsius", {"device": "gpu"}) == 61
    assert registry.get_sample_value("titok_batch_padding_ratio", {"device": "gpu", "op": "encode"}) == 0.25


def test_a_gpu_whose_driver_does_not_tell_is_told_of_by_its_memory_alone() -> None:
    registry = told(gpu=GPU | {"sensors": None})
    assert registry.get_sample_value("titok_gpu_memory_bytes", {"device": "gpu", "kind": "total"}) == 3
    assert registry.get_sample_value("titok_gpu_utilization_ratio", {"device": "gpu"}) is None


def test_a_worker_that_has_said_nothing_yet_is_left_out() -> None:
    registry = told(gpu={}, cpu={"memory": None, "padding": {"encode": 0.0}})
    assert registry.get_sample_value("titok_batch_padding_ratio", {"device": "cpu", "op": "encode"}) == 0
    assert registry.get_sample_value("titok_batch_padding_ratio", {"device": "gpu", "op": "encode"}) is None
