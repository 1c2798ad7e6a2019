"""Behaviour under overload: ``make bench``.

First S-128 with synthetic weights, so slow that the load generator costs almost nothing, under three times its capacity in
an open loop: goodput, latency of accepted requests, and latency of refusals. The queue is short enough that accepted
requests meet their deadline: they should take at most the time of admission and of a full queue at full capacity.

Then the bundled checkpoint: latency of encode while generate requests keep the device busy, and throughput of closed loops
of 1 to 1,000 connections, which ask again as soon as they are answered, also after a 429.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from prometheus_client.parser import text_string_to_metric_families

from service.operations.build import ADMISSION_WAIT_SECONDS
from tests.benchmarks.load import (
    Load,
    Request,
    Seconds,
    capacity,
    closed_loop,
    h2load_version,
    open_loop,
    require_h2load,
    throughput,
)
from tests.benchmarks.report import OUTPUT, goals_table, machine, markdown, write
from tests.benchmarks.served import DEFAULT_VARIANT, Model, jpegs, model_named, serve

FACTOR = 3.0
# Short enough that a processor with three images per second answers the last one within the deadline.
QUEUE_IMAGES = 48
MAX_BATCH = 8
CAPACITY_CONNECTIONS = 32  # the queue is never empty and never full
ENCODE_RATE = 10.0  # requests per second whose latency is measured, with and without generate requests
FLOOD_CONNECTIONS = 32
FLOOD_BODY = b'{"class": 0, "n": 4, "seed": 1, "preset": "fast"}'
CONNECTIONS = (1, 2, 8, 32, 64, 1000)
GOALS = {
    "goodput / capacity": ">= 0.95",
    "p99 of accepted / (queue bound / capacity)": "<= 1",
    "encode p95 under generate / (3 x unloaded + a step)": "<= 1",
    "images/s of two connections / of one": "> 1",
    "images/s of 1,000 connections / of 64": ">= 0.8",
}


@dataclass(frozen=True)
class Overload:
    """Requests and images per second; latencies in seconds, from the time a request was due."""

    capacity_before: float
    capacity_after: float
    offered: float
    goodput: float
    statuses: dict[str, int]
    unanswered: int
    accepted_median: float
    accepted_p99: float
    refused_median: float
    refused_p99: float
    generator_share: float

    @property
    def capacity(self) -> float:
        """The mean of the capacity before and after the overload."""
        return (self.capacity_before + self.capacity_after) / 2

    @property
    def queue_bound(self) -> float:
        """Seconds for admission, a full queue, the running batch and the request's own batch."""
        return ADMISSION_WAIT_SECONDS + (QUEUE_IMAGES + 2 * MAX_BATCH) / self.capacity


@dataclass(frozen=True)
class Fairness:
    """Encode latencies in seconds, with and without generate requests, and the mean time of a sampling step."""

    unloaded_p95: float
    flooded_p95: float
    step: float
    generate_statuses: dict[str, int]

    @property
    def bound(self) -> float:
        """The limit of the latency during generate requests."""
        return 3 * self.unloaded_p95 + self.step


def overload(model: Model, *, seconds: float) -> tuple[Overload, Load]:
    """The results, and the answers they are computed from."""
    settings: dict[str, object] = {
        "max_batch_size": MAX_BATCH,
        "queue_images": QUEUE_IMAGES,
        "max_images": QUEUE_IMAGES,
        "max_generate": QUEUE_IMAGES,
    }
    [jpeg] = jpegs(model.load().image_size, 1)
    with serve(model, **{name: str(value) for name, value in settings.items()}) as (_, endpoint):
        request = endpoint.request(jpeg)
        before, _ = capacity([request], connections=CAPACITY_CONNECTIONS, seconds=seconds / 6, warm_up=2.0)
        print(f"  {model.name}: {before:.2f} images/s are its capacity", flush=True)
        load = open_loop(request, rate=FACTOR * before, seconds=seconds)
        after, _ = capacity([request], connections=CAPACITY_CONNECTIONS, seconds=seconds / 6, warm_up=2.0)
    accepted, refused = load.latencies(200), load.latencies(429)
    last_due = max(answer.due for answer in load.answers)
    # Requests that are still queued when the load ends are answered without load.
    finished = [moment for moment in load.finished(200) if moment <= last_due]
    # Also report too few answers for a rate.
    goodput = throughput(finished, seconds=seconds) if len(finished) > 4 * MAX_BATCH else len(finished) / seconds
    result = Overload(
        capacity_before=before,
        capacity_after=after,
        offered=FACTOR * before,
        goodput=goodput,
        statuses=load.statuses(),
        unanswered=load.unanswered,
        accepted_median=_percentile(accepted, 50),
        accepted_p99=_percentile(accepted, 99),
        refused_median=_percentile(refused, 50),
        refused_p99=_percentile(refused, 99),
        generator_share=load.generator_share,
    )
    return result, load


def _percentile(values: Seconds, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def fairness(*, seconds: float) -> tuple[Fairness, Load, Load]:
    """The results, and the encode requests without and with generate requests."""
    [jpeg] = jpegs(128, 1)
    with serve(Model(DEFAULT_VARIANT)) as (server, endpoint), ThreadPoolExecutor(1) as pool:
        encode = endpoint.request(jpeg)
        generate = Request(f"{server.url}/v1/generate", FLOOD_BODY, "application/json")
        alone = open_loop(encode, rate=ENCODE_RATE, seconds=seconds)
        # The flood starts before the measured requests and ends after them.
        flood = pool.submit(closed_loop, [generate], connections=FLOOD_CONNECTIONS, seconds=seconds + 4)
        open_loop(encode, rate=ENCODE_RATE, seconds=2)
        begun = _steps(server.admin_url)
        beside = open_loop(encode, rate=ENCODE_RATE, seconds=seconds)
        ended = _steps(server.admin_url)
        statuses = flood.result().statuses()
    for load in (alone, beside):
        if set(load.statuses()) != {"200"} or load.unanswered:
            raise AssertionError(f"encode is answered with {load.statuses()}")
    result = Fairness(
        unloaded_p95=_percentile(alone.latencies(200), 95),
        flooded_p95=_percentile(beside.latencies(200), 95),
        step=(ended[1] - begun[1]) / max(1.0, ended[0] - begun[0]),
        generate_statuses=statuses,
    )
    return result, alone, beside


def closed_loops(*, seconds: float) -> dict[int, float]:
    """Images per second by the number of connections."""
    [jpeg] = jpegs(128, 1)
    rates = {}
    with serve(Model(DEFAULT_VARIANT)) as (_, endpoint):
        for connections in CONNECTIONS:
            load = closed_loop([endpoint.request(jpeg)], connections=connections, seconds=seconds, warm_up=2.0)
            rates[connections] = throughput(load.finished(200), seconds=seconds)
    return rates


def _steps(admin_url: str) -> tuple[float, float]:
    """Sampling steps so far, and the seconds they took."""
    text = httpx.get(f"{admin_url}/metrics", timeout=30).raise_for_status().text
    totals = dict.fromkeys(("count", "sum"), 0.0)
    for family in text_string_to_metric_families(text):
        if family.name == "titok_batch_duration_seconds":
            for sample in family.samples:
                kind = sample.name.rpartition("_")[2]
                if kind in totals and (sample.labels["op"], sample.labels["stage"]) == ("generate", "device"):
                    totals[kind] += sample.value
    return totals["count"], totals["sum"]


def plot(figures: Overload, load: Load, alone: Load, beside: Load) -> Figure:
    """Answers by the second; latencies of accepted and refused requests; encode with and without generate."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    rates, latencies, encode = figure.subplots(1, 3)
    begun = min(answer.due for answer in load.answers)
    last = max(answer.due for answer in load.answers) - begun
    edges = np.arange(0.0, last + 4, 4)
    for status, label in ((200, "200"), (429, "429")):
        counts, _ = np.histogram(load.finished(status) - begun, edges)
        rates.stairs(counts / 4, edges, label=label)
    rates.axhline(figures.capacity, color="black", linestyle="dashed", label="capacity")
    rates.set(xlabel="s", ylabel="answers/s", title=f"{FACTOR:g} times its capacity")
    rates.legend()
    _distribution(latencies, {"200": load.latencies(200), "429": load.latencies(429)})
    latencies.axvline(figures.queue_bound, color="black", linestyle="dashed", label="queue bound / capacity")
    latencies.set(title="from when a request was due")
    latencies.legend()
    _distribution(encode, {"alone": alone.latencies(200), "beside generate": beside.latencies(200)})
    encode.set(title=f"encode, {DEFAULT_VARIANT}")
    encode.legend()
    return figure


def _distribution(axes: Axes, samples: dict[str, Seconds]) -> None:
    for label, values in samples.items():
        if len(values):
            axes.ecdf(values, label=label)
    axes.set(xscale="log", xlabel="s", ylabel="share of requests")


def figures_of(result: Overload, fair: Fairness, rates: dict[int, float]) -> dict[str, float]:
    """The figures that have goals, and those that explain them."""
    return {
        "goodput / capacity": result.goodput / result.capacity,
        "p99 of accepted / (queue bound / capacity)": result.accepted_p99 / result.queue_bound,
        "429 latency, ms (median)": 1000 * result.refused_median,
        "429 latency, ms (p99)": 1000 * result.refused_p99,
        "encode p95 under generate / (3 x unloaded + a step)": fair.flooded_p95 / fair.bound,
        "encode p95 alone, ms": 1000 * fair.unloaded_p95,
        "encode p95 under generate, ms": 1000 * fair.flooded_p95,
        "a sampling step under generate, ms": 1000 * fair.step,
        "images/s of two connections / of one": rates[2] / rates[1],
        "images/s of 1,000 connections / of 64": rates[1000] / rates[64],
        "load generator, of a core": result.generator_share,
    }


def main() -> None:
    """Prints the tables and writes them, with JSON and a plot."""
    parser = argparse.ArgumentParser(description="Measure the service under overload.")
    parser.add_argument("--model", default="titok-s-128", help="the model to overload")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the overload; other parts are shorter")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    require_h2load()
    with tempfile.TemporaryDirectory() as folder:
        result, load = overload(model_named(arguments.model, Path(folder)), seconds=arguments.seconds)
    fair, alone, beside = fairness(seconds=arguments.seconds / 4)
    rates = closed_loops(seconds=arguments.seconds / 4)
    figures = figures_of(result, fair, rates)
    document = {
        "machine": machine("fastapi", "uvicorn", h2load=h2load_version().removeprefix("h2load ")),
        "settings": {
            "model": arguments.model,
            "seconds": arguments.seconds,
            "factor": FACTOR,
            "queue_images": QUEUE_IMAGES,
            "max_batch_size": MAX_BATCH,
            "encode_rate": ENCODE_RATE,
            "flood": {"connections": FLOOD_CONNECTIONS, "body": FLOOD_BODY.decode()},
        },
        "overload": {**asdict(result), "queue_bound": result.queue_bound},
        "fairness": asdict(fair),
        "images/s by connections": rates,
        "figures": figures,
        "goals": GOALS,
    }
    tables = [
        goals_table(figures, GOALS),
        markdown(
            ["offered/s", "capacity before, after", "goodput/s", "answers by status", "no answer"],
            [
                [
                    result.offered,
                    f"{result.capacity_before:.2f}, {result.capacity_after:.2f}",
                    result.goodput,
                    ", ".join(f"{status}: {count}" for status, count in result.statuses.items()),
                    result.unanswered,
                ]
            ],
        ),
    ]
    write("overload", arguments.output, document=document, tables=tables, figure=plot(result, load, alone, beside))


if __name__ == "__main__":
    main()
