"""Prometheus collectors of the current state: queues, workers, devices and processes, read at every scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.processes.child import Child, DeathReason
from service.version import VERSION

__all__ = [
    "GpusCollector",
    "PaddingCollector",
    "ProcessesCollector",
    "RestartsCollector",
    "ServiceCollector",
    "WorkersCollector",
]


class ServiceCollector(Collector):
    """Metrics of a health document (``service/processes/health.py``)."""

    def __init__(self, health: Callable[[], Mapping[str, Any]]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        health = self._health()
        queued = GaugeMetricFamily("titok_queue_images", "Images that wait in a lane.", labels=("op",))
        for op, lane in health["lanes"].items():
            queued.add_metric((op,), lane["queued_images"])
        yield queued
        requests = GaugeMetricFamily("titok_requests_in_progress", "Requests under way.", labels=("op",))
        for op, count in health["requests"].items():
            requests.add_metric((op,), count)
        yield requests
        build = {"version": VERSION}
        if "model" in health:
            build |= {"model": health["model"], "weights": health["revision"]}
        yield InfoMetricFamily("titok_build", "What runs here.", build)


class WorkersCollector(Collector):
    """Whether the worker of each device is up."""

    def __init__(self, up: Callable[[], Mapping[str, bool]]) -> None:
        self._up = up

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        family = GaugeMetricFamily("titok_worker_up", "Whether a device can run a batch.", labels=("device",))
        for device, is_up in self._up().items():
            family.add_metric((device,), is_up)
        yield family


class RestartsCollector(Collector):
    """Restarts of the supervised processes; workers by device."""

    def __init__(self, front_ends: Sequence[Child], workers: Mapping[str, Child]) -> None:
        self._front_ends = front_ends
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``. Every reason is exported from the start; else the first restart would not be an increase."""
        workers = CounterMetricFamily(
            "titok_worker_restarts", "Workers that died and were replaced.", labels=("device", "reason")
        )
        front_ends = CounterMetricFamily(
            "titok_front_end_restarts", "Front ends that died and were replaced.", labels=("reason",)
        )
        deaths: Counter[DeathReason] = Counter()
        for front_end in self._front_ends:
            deaths.update(front_end.deaths)
        for reason in get_args(DeathReason):
            front_ends.add_metric((reason,), deaths[reason])
            for device, worker in self._workers.items():
                workers.add_metric((device, reason), worker.deaths[reason])
        yield from (workers, front_ends)


class PaddingCollector(Collector):
    """Padding of batches, from the statuses of the workers by device (``ModelDevice.status``)."""

    def __init__(self, statuses: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        family = GaugeMetricFamily(
            "titok_batch_padding_ratio",
            "Part of the rows of batches, since the worker's start, that only filled up to a recorded size.",
            labels=("op", "device"),
        )
        for device, status in self._statuses().items():
            for op, ratio in status.get("padding", {}).items():
                family.add_metric((op, device), ratio)
        yield family


class GpusCollector(Collector):
    """Memory and sensors of GPUs, from the statuses of the workers by device (``ModelDevice.status``)."""

    def __init__(self, statuses: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        memory = GaugeMetricFamily(
            "titok_gpu_memory_bytes", "Memory in use by kind, and in all.", labels=("device", "kind")
        )
        utilization = GaugeMetricFamily(
            "titok_gpu_utilization_ratio", "Part of the time in which the GPU computed, by NVML.", labels=("device",)
        )
        temperature = GaugeMetricFamily("titok_gpu_temperature_celsius", "By NVML.", labels=("device",))
        failures = CounterMetricFamily("titok_gpu_oom", "Batches that did not fit into memory.", labels=("device",))
        for device, status in self._statuses().items():
            kinds = status.get("memory")
            if kinds is None:  # no status yet, or a CPU
                continue
            for kind, size in kinds.items():
                memory.add_metric((device, kind), size)
            failures.add_metric((device,), status["out_of_memory"])
            if (sensors := status.get("sensors")) is not None:
                utilization.add_metric((device,), sensors["utilization"])
                temperature.add_metric((device,), sensors["temperature"])
        yield from (memory, failures, utilization, temperature)


class ProcessesCollector(Collector):
    """Memory, CPU time and open descriptors of processes by name; a process id is None while there is no process."""

    def __init__(self, pids: Callable[[], Mapping[str, int | None]]) -> None:
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        families: dict[str, Metric] = {}
        for name, pid in self._pids().items():
            if pid is None:
                continue
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.add_sample(sample.name, {"process": name}, sample.value)
        return families.values()
