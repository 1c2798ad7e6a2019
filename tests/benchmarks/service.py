"""Throughput of the service, of LitServe and of plain FastAPI, relative to the bare model: ``make bench``.

Two models: S-128 with synthetic weights, which is slow on a CPU, and the bundled checkpoint, so small that all overhead
shows. Pre-sized JPEGs, 64 connections that are always busy, no cache. The bare model is a loop over pixels in memory at
its best batch size. LitServe and this service get the best settings of a small grid. Before each measurement the server's
ids are compared with the bare model's.

Then the latency of one client that sends one request after the other, compared with the bare model.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from models import Tokenizer
from tests.benchmarks.load import capacity, closed_loop, h2load_version, require_h2load
from tests.benchmarks.report import OUTPUT, goals_table, machine, markdown, write
from tests.benchmarks.served import DEFAULT_VARIANT, Endpoint, Model, jpegs, model_named, other_server, pixels_of, serve

CONNECTIONS = 64
BATCHES = (1, 2, 4, 8, 16)
IMAGES = 16  # distinct ones
SERVER_ROUNDS = 3
CLIENT_ROUNDS = 4
GOALS = {
    "HTTP / bare model, titok-s-128": ">= 0.93",
    "this service / LitServe, titok-s-128": ">= 1.2",
    "added latency, ms (median)": "<= 3",
}

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Options = Mapping[str, Any]
Start = Callable[..., AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Row:
    """Images per second of one server or the bare model in each round; ``generator_share`` is the load generator's share
    of a core in the last round.
    """

    model: str
    server: str
    settings: str
    rates: Sequence[float]
    generator_share: float = 0.0

    @property
    def images_per_second(self) -> float:
        """The median."""
        return float(np.median(self.rates))

    def over(self, other: Row) -> float:
        """The median of the ratios within a round."""
        return float(np.median([ours / theirs for ours, theirs in zip(self.rates, other.rates, strict=True)]))

    def as_json(self) -> dict[str, object]:
        """With the median."""
        return {**asdict(self), "images_per_second": self.images_per_second}


@dataclass(frozen=True)
class Latency:
    """Latencies of one client in milliseconds, medians or p95. ``preprocess`` is the decoding of the JPEG."""

    bare: float
    preprocess: float
    http: float
    http_p95: float

    @property
    def added(self) -> float:
        """The latency beyond that of the model."""
        return self.http - self.bare


class Comparison:
    """Compares one model, bare and behind each server, in alternating rounds."""

    def __init__(self, model: Model, *, seconds: float) -> None:
        self._model = model
        self._seconds = seconds
        self._tokenizer = model.load()
        size = self._tokenizer.image_size
        self._jpegs = jpegs(size, IMAGES)
        self._pixels = np.stack([pixels_of(jpeg, size) for jpeg in self._jpegs])
        self._ids: Ids = self._tokenizer.encode(self._pixels).numpy()
        self._rate = 0.0
        self.grid: list[Row] = []

    def rows(self) -> list[Row]:
        """The bare model first, then the servers, each at its best settings."""
        sizes = {size: bare_rate(self._tokenizer, self._pixels, size, self._seconds / 5) for size in BATCHES}
        best = max(sizes, key=lambda size: sizes[size])
        print(f"  bare model, images/s by batch: {', '.join(f'{size}: {rate:.1f}' for size, rate in sizes.items())}")
        self._rate = sizes[best]
        # With a slow model, too few large batches would complete within the time.
        largest = 32 if self._rate > 50 else 8
        batches = [{"max_batch_size": size} for size in sorted({best, min(4 * best, largest), largest})]
        servers: dict[str, tuple[Start, Options]] = {
            "this service": (self._ours, self._best("this service", self._ours, batches)),
            "LitServe": (self._litserve, self._best_litserve(batches)),
            "FastAPI, no batches": (self._plain, {}),
        }
        return self._alternate(best, servers)

    def _alternate(self, batch: int, servers: Mapping[str, tuple[Start, Options]]) -> list[Row]:
        """All servers run; other servers are stopped (SIGSTOP) while they are not measured."""
        rates: dict[str, list[float]] = {"bare model": [], **{name: [] for name in servers}}
        shares: dict[str, float] = {}
        settings = {"bare model": f"batch {batch}", **{name: _text(options) for name, (_, options) in servers.items()}}
        with ExitStack() as stack:
            endpoints = {name: stack.enter_context(start(**options)) for name, (start, options) in servers.items()}
            for name, endpoint in endpoints.items():
                with endpoint.awake():
                    self._check_ids(name, endpoint)
            for number in range(1, SERVER_ROUNDS + 1):
                before = bare_rate(self._tokenizer, self._pixels, batch, self._seconds / 2)
                for name, endpoint in endpoints.items():
                    with endpoint.awake():
                        rate, shares[name] = self._rate_of(endpoint, servers[name][1], self._seconds)
                    rates[name].append(rate)
                after = bare_rate(self._tokenizer, self._pixels, batch, self._seconds / 2)
                rates["bare model"].append((before + after) / 2)
                shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in rates.items())
                print(f"  {self._model.name}, round {number} of {SERVER_ROUNDS}, images/s: {shown}", flush=True)
        return [
            Row(self._model.name, name, settings[name], values, shares.get(name, 0.0)) for name, values in rates.items()
        ]

    @contextmanager
    def _ours(self, **settings: object) -> Iterator[Endpoint]:
        given = {name: str(value) for name, value in settings.items()}
        # As LitServe, without a deadline: a CPU may need more than half a minute for 64 images.
        with serve(self._model, request_timeout="600", **given) as (_, endpoint):
            yield endpoint

    def _litserve(self, **options: object) -> AbstractContextManager[Endpoint]:
        return other_server("litserve", self._model, **options)

    def _plain(self) -> AbstractContextManager[Endpoint]:
        return other_server("plain", self._model)

    def _best_litserve(self, batches: Sequence[Options]) -> Options:
        """Chooses the number of workers, one or one per core; then the batch size and, for the fast model, whose queue can
        be too short to fill a batch, the time to wait for one.
        """
        first = {**batches[0], "batch_timeout": 0.0}
        cores = len(os.sched_getaffinity(0))
        best = self._best("LitServe", self._litserve, [{**first, "workers": workers} for workers in sorted({1, cores})])
        timeouts = (0.0, 0.02) if self._model.name == DEFAULT_VARIANT else (0.0,)
        others = [{**best, **given, "batch_timeout": timeout} for given in batches for timeout in timeouts]
        return self._best("LitServe", self._litserve, others)

    def _best(self, name: str, start: Start, grid: Sequence[Options]) -> Options:
        """The settings of the grid with the highest throughput."""
        rows = []
        for options in grid:
            with start(**options) as endpoint:
                self._check_ids(name, endpoint)
                rate, share = self._rate_of(endpoint, options, self._seconds / 3)
            rows.append(Row(self._model.name, name, _text(options), [rate], share))
            print(f"  {self._model.name}, {name} ({_text(options)}): {rate:.2f} images/s", flush=True)
        self.grid += rows
        return max(zip(rows, grid, strict=True), key=lambda pair: pair[0].images_per_second)[1]

    def _rate_of(self, endpoint: Endpoint, options: Options, seconds: float) -> tuple[float, float]:
        """Images a second, and the load generator's share of a core."""
        # Answers come in bursts, one per batch: the rate needs several of them.
        seconds = max(seconds, 5 * options.get("max_batch_size", 1) / self._rate)
        requests = [endpoint.request(jpeg) for jpeg in self._jpegs]
        rate, load = capacity(requests, connections=CONNECTIONS, seconds=seconds, warm_up=min(3.0, seconds))
        return rate, load.generator_share

    def _check_ids(self, name: str, endpoint: Endpoint) -> None:
        if not np.array_equal(endpoint.encode(self._jpegs), self._ids):
            raise AssertionError(f"ids of {name} differ from those of the bare model")


def _text(options: Options) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items()) or "defaults"


def bare_rate(tokenizer: Tokenizer, images: Pixels, batch: int, seconds: float) -> float:
    """Images per second of the model in a loop over all images, for at least ``seconds``."""
    tokenizer.encode(images[:batch])
    begun, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        for first in range(0, len(images), batch):
            tokenizer.encode(images[first : first + batch])
        done += len(images)
    return done / elapsed


def latency(model: Model, *, seconds: float) -> Latency:
    """Medians over alternating rounds of the bare model and the service."""
    tokenizer = model.load()
    size = tokenizer.image_size
    [jpeg] = jpegs(size, 1)
    pixels = pixels_of(jpeg, size)[None]
    bare: list[float] = []
    preprocess: list[float] = []
    http: list[float] = []
    with serve(model) as (_, endpoint):
        request = endpoint.request(jpeg)
        closed_loop([request], connections=1, seconds=1.0)
        for _ in range(CLIENT_ROUNDS):
            bare += _times(lambda: tokenizer.encode(pixels), seconds / CLIENT_ROUNDS)
            preprocess += _times(lambda: pixels_of(jpeg, size), 0.1)
            _, load = capacity([request], connections=1, seconds=seconds / CLIENT_ROUNDS, warm_up=0.0)
            http += load.latencies(200).tolist()
    return Latency(
        bare=1000 * float(np.median(bare)),
        preprocess=1000 * float(np.median(preprocess)),
        http=1000 * float(np.median(http)),
        http_p95=1000 * float(np.percentile(http, 95)),
    )


def _times(run: Callable[[], object], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        run()
        times.append(time.perf_counter() - begun)
    return times


def plot(rows: Sequence[Row], one: Latency) -> Figure:
    """Throughput over the bare model's, by model and server; and the parts of one request."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes, parts = figure.subplots(1, 2, width_ratios=[2, 1])
    rates = {(row.model, row.server): row for row in rows}
    models = list(dict.fromkeys(row.model for row in rows))
    servers = list(dict.fromkeys(row.server for row in rows if row.server != "bare model"))
    width = 0.8 / len(servers)
    for place, server in enumerate(servers):
        shares = [row.over(rates[row.model, "bare model"]) for row in rows if row.server == server]
        bars = axes.bar(np.arange(len(models)) + (place - 1) * width, shares, width, label=server)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, label_type="center")
    axes.axhline(1.0, color="black", linestyle="dashed")
    axes.set(
        xticks=range(len(models)),
        xticklabels=models,
        ylabel="images/s over the bare model's",
        title=f"{CONNECTIONS} connections, JPEG to ids",
        ylim=(0, 1.3),
    )
    axes.legend(loc="upper right", ncols=len(servers), fontsize=8)
    bars = parts.bar(["bare model", "HTTP"], [one.bare, one.http], color=["tab:gray", "tab:blue"])
    parts.bar_label(bars, fmt="%.2f", fontsize=8)
    parts.set(ylabel="ms, median", title=f"One client, {DEFAULT_VARIANT}")
    return figure


def main() -> None:
    """Prints the tables and writes them, with JSON and a plot."""
    parser = argparse.ArgumentParser(description="Compare the service with the bare model and other servers.")
    parser.add_argument("--models", nargs="+", default=["titok-s-128", DEFAULT_VARIANT])
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="per measurement and round; a third of it in the grid"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    require_h2load()
    rows: list[Row] = []
    grid: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            print(name, flush=True)
            seconds = arguments.seconds / (2 if name == DEFAULT_VARIANT else 1)
            comparison = Comparison(model_named(name, Path(folder)), seconds=seconds)
            rows += comparison.rows()
            grid += comparison.grid
    one = latency(Model(DEFAULT_VARIANT), seconds=arguments.seconds / 2)
    figures = figures_of(rows, one)
    document = {
        "machine": machine("fastapi", "uvicorn", "litserve", h2load=h2load_version().removeprefix("h2load ")),
        "settings": {"connections": CONNECTIONS, "seconds": arguments.seconds, "images": IMAGES},
        "rows": [row.as_json() for row in rows],
        "grid": [row.as_json() for row in grid],
        "one_client_ms": {**asdict(one), "added": one.added},
        "figures": figures,
        "goals": GOALS,
    }
    write("service", arguments.output, document=document, tables=tables(rows, one, figures), figure=plot(rows, one))


def figures_of(rows: Sequence[Row], one: Latency) -> dict[str, float]:
    """The ratios between servers, and the added latency."""
    rates = {(row.model, row.server): row for row in rows}
    figures: dict[str, float] = {}
    for name in dict.fromkeys(row.model for row in rows):
        ours = rates[name, "this service"]
        figures[f"HTTP / bare model, {name}"] = ours.over(rates[name, "bare model"])
        for other, shown in (("LitServe", "LitServe"), ("FastAPI, no batches", "plain FastAPI")):
            figures[f"this service / {shown}, {name}"] = ours.over(rates[name, other])
    return figures | {"added latency, ms (median)": one.added}


def tables(rows: Sequence[Row], one: Latency, figures: Mapping[str, float]) -> list[str]:
    """The results in Markdown."""
    bare = {row.model: row for row in rows if row.server == "bare model"}
    by_server = [
        [row.model, row.server, row.settings, row.images_per_second, row.over(bare[row.model]), row.generator_share]
        for row in rows
    ]
    latencies = [DEFAULT_VARIANT, one.bare, one.preprocess, one.http, one.http_p95, one.added]
    return [
        markdown(
            ["model", "server", "settings", "images/s", "/ bare model", "load generator, share of a core"], by_server
        ),
        markdown(["one client, ms", "bare model", "JPEG decoding", "HTTP", "HTTP, p95", "added"], [latencies]),
        goals_table(figures, GOALS),
    ]


if __name__ == "__main__":
    main()
