"""Prometheus collectors of the current state: queues, workers, devices and processes, read at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.processes.child import Child, DeathReason
from service.version import VERSION

WorkerState = Literal["up", "starting", "down"]
Statuses = Mapping[str, Mapping[str, Any]]


class StateCollector(Collector):
    """Calls ``read`` for the metrics at every scrape."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        return self._read()


def service_metrics(health: Mapping[str, Any]) -> Iterator[Metric]:
    """Metrics of a health document (``service/processes/health.py``)."""
    queued = GaugeMetricFamily("titok_queue_images", "Images that wait in a lane.", labels=("op",))
    for op, lane in health["lanes"].items():
        queued.add_metric((op,), lane["queued_images"])
    yield queued
    requests = GaugeMetricFamily("titok_requests_in_progress", "Requests in progress.", labels=("op",))
    for op, count in health["requests"].items():
        requests.add_metric((op,), count)
    yield requests
    yield GaugeMetricFamily(
        "titok_api_keys_readable",
        "Whether the file of API keys can be used; without a file 1.",
        value=health["api_keys"] == "ok",
    )
    build = {"version": VERSION}
    if "model" in health:
        build |= {"model": health["model"], "weights": health["revision"]}
    yield InfoMetricFamily("titok_build", "Version of the service and of its weights.", build)


def worker_state(worker: Child) -> WorkerState:
    """``starting`` until it was ready once, or has failed."""
    if worker.state == "ready":
        return "up"
    return "starting" if worker.state in ("starting", "opening") and not worker.restarts else "down"


def worker_metrics(states: Mapping[str, WorkerState]) -> Iterator[Metric]:
    """Whether the worker of each device is up, or starts for the first time."""
    up = GaugeMetricFamily("titok_worker_up", "Whether a device can run a batch.", labels=("device",))
    starting = GaugeMetricFamily(
        "titok_worker_starting", "Whether a device loads its models for the first time.", labels=("device",)
    )
    for device, state in states.items():
        up.add_metric((device,), state == "up")
        starting.add_metric((device,), state == "starting")
    yield from (up, starting)


def restart_metrics(front_ends: Sequence[Child], workers: Mapping[str, Child]) -> Iterator[Metric]:
    """Restarts of front ends, and of workers by device. Every reason is exported from the start; else the first restart
    would not be an increase.
    """
    by_device = CounterMetricFamily("titok_worker_restarts", "Restarted workers.", labels=("device", "reason"))
    total = CounterMetricFamily("titok_front_end_restarts", "Restarted front ends.", labels=("reason",))
    for reason in get_args(DeathReason):
        total.add_metric((reason,), sum(front_end.deaths[reason] for front_end in front_ends))
        for device, worker in workers.items():
            by_device.add_metric((device, reason), worker.deaths[reason])
    yield from (by_device, total)


def padding_metrics(statuses: Statuses) -> Iterator[Metric]:
    """Padding of batches, from the statuses of the workers by device (``ModelDevice.status``)."""
    family = GaugeMetricFamily(
        "titok_batch_padding_ratio",
        "Fraction of the rows of batches, since the worker's start, that only filled up to a recorded size.",
        labels=("op", "device"),
    )
    for device, status in statuses.items():
        for op, ratio in status.get("padding", {}).items():
            family.add_metric((op, device), ratio)
    yield family


def gpu_metrics(statuses: Statuses) -> Iterator[Metric]:
    """Memory and sensors of GPUs, from the statuses of the workers by device (``ModelDevice.status``)."""
    memory = GaugeMetricFamily("titok_gpu_memory_bytes", "Memory by kind, and in total.", labels=("device", "kind"))
    utilization = GaugeMetricFamily(
        "titok_gpu_utilization_ratio", "Fraction of the time in which the GPU computed (NVML).", labels=("device",)
    )
    temperature = GaugeMetricFamily("titok_gpu_temperature_celsius", "Temperature (NVML).", labels=("device",))
    failures = CounterMetricFamily("titok_gpu_oom", "Batches that did not fit into memory.", labels=("device",))
    for device, status in statuses.items():
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


def log_metrics(dropped: Mapping[str, int]) -> Metric:
    """Dropped log lines of processes by name."""
    family = CounterMetricFamily(
        "titok_log_lines_dropped", "Log lines that standard error did not take.", labels=("process",)
    )
    for name, lines in dropped.items():
        family.add_metric((name,), lines)
    return family


def process_metrics(pids: Mapping[str, int | None]) -> Iterable[Metric]:
    """Memory, CPU time and open descriptors of processes by name; a process id is None while there is no process."""
    families: dict[str, Metric] = {}
    for name, pid in pids.items():
        if pid is None:
            continue
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {"process": name}, sample.value)
    return families.values()
