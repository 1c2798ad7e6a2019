"""What Prometheus is told of the service's state: queues, workers, devices and processes, as they are when it asks."""

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
    """Of a health document (``service/processes/health.py``)."""

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
    """Of devices, by name, and whether they can run a batch."""

    def __init__(self, up: Callable[[], Mapping[str, bool]]) -> None:
        self._up = up

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        family = GaugeMetricFamily("titok_worker_up", "Whether a device can run a batch.", labels=("device",))
        for device, is_up in self._up().items():
            family.add_metric((device,), is_up)
        yield family


class RestartsCollector(Collector):
    """Of the processes that the supervisor keeps alive; workers by their devices."""

    def __init__(self, front_ends: Sequence[Child], workers: Mapping[str, Child]) -> None:
        self._front_ends = front_ends
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``. Every reason is there from the beginning, or the first restart would be no increase."""
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
    """Of what devices say of themselves, by name: see ``ModelDevice.status``. Empty while one does not say anything."""

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
    """Of the GPUs, as their workers told last."""

    def __init__(self, workers: Mapping[str, Child]) -> None:
        self._workers = workers

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
        for device, worker in self._workers.items():
            kinds = worker.status.get("memory")
            if kinds is None:  # not told yet, or a CPU
                continue
            for kind, size in kinds.items():
                memory.add_metric((device, kind), size)
            failures.add_metric((device,), worker.status["out_of_memory"])
            if (sensors := worker.status.get("sensors")) is not None:
                utilization.add_metric((device,), sensors["utilization"])
                temperature.add_metric((device,), sensors["temperature"])
        yield from (memory, failures, utilization, temperature)


class ProcessesCollector(Collector):
    """Memory, processor time and descriptors of processes by name; a process id is None while there is no process."""

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
