"""How much of a device's time the engine keeps busy, without HTTP: ``make bench``.

A fake device takes exactly so long for each image. The engine's share of the ideal is the images it gets through in the
time that the device would need for them if it never waited. Every request's answer is checked to be its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from service.engine import Engine, InlineEngine, LaneLimits
from service.server import uvloop_runner
from tests.benchmarks.load import throughput
from tests.benchmarks.report import OUTPUT, machine, markdown, write

SIZE = 256
MAX_BATCH = 256
# One batch at the device, one that has gathered, and one on its way in.
IN_FLIGHT = 3 * MAX_BATCH
GOALS = {1.0: 0.97, 0.3: 0.94, 0.1: 0.88}  # by milliseconds of an image
IMAGES_PER_REQUEST = (1, 8)
# What the operating system may oversleep, at its usual worst.
OVERSLEEP = 0.0005


class TimedDevice:
    """Encodes in ``seconds`` an image, to the microsecond; an image's ids are the values of its first pixel."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        end = time.perf_counter() + self._seconds * len(images)
        ids = images[:, 0, 0].astype(np.int64)
        time.sleep(max(0.0, end - time.perf_counter() - OVERSLEEP))
        while time.perf_counter() < end:
            time.sleep(0)  # a device that computes leaves the interpreter to others
        return ids

    def decode(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        raise NotImplementedError

    def begin(self, label: int | None, seed: int, settings: object) -> Any:
        raise NotImplementedError

    def step(self, rows: Sequence[Any]) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Row:
    """One figure: the share of the ideal, and images a second."""

    milliseconds_per_image: float
    images_per_request: int
    images_per_second: float
    share_of_ideal: float


def build_engine(seconds_per_image: float) -> Engine:
    """The engine under test, not started."""
    limits = LaneLimits(max_batch_size=MAX_BATCH, max_images=2 * IN_FLIGHT, max_bytes=2 * IN_FLIGHT * SIZE * SIZE * 3)
    return InlineEngine(partial(TimedDevice, seconds_per_image), limits=limits)


async def measure(milliseconds: float, images_per_request: int, *, seconds: float) -> Row:
    """Many callers that each send their next request when the last one is answered."""
    engine = build_engine(milliseconds / 1000)
    engine.start()
    await engine.ready()
    random = np.random.default_rng(0)
    requests = random.integers(0, 256, (IN_FLIGHT // images_per_request, images_per_request, SIZE, SIZE, 3), np.uint8)
    begun = time.perf_counter()
    warm, end = begun + seconds / 5, begun + seconds / 5 + seconds
    finished: list[float] = []

    async def caller(images: npt.NDArray[np.uint8]) -> None:
        expected = images[:, 0, 0]
        while time.perf_counter() < end:
            encoded = await engine.encode(images, deadline=time.monotonic() + 60)
            if not np.array_equal(encoded.tokens, expected):
                raise AssertionError("a request was given another one's tokens")
            if (now := time.perf_counter()) > warm:
                finished.append(now)

    async with asyncio.TaskGroup() as group:
        for images in requests:
            group.create_task(caller(images))
    await engine.stop(10)
    rate = throughput([time for time in finished if time <= end]) * images_per_request
    return Row(milliseconds, images_per_request, rate, rate * milliseconds / 1000)


def plot(rows: Sequence[Row]) -> Figure:
    """Shares of the ideal, by the device's speed, and the goals."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.35
    for place, count in enumerate(IMAGES_PER_REQUEST):
        shares = [row.share_of_ideal for row in rows if row.images_per_request == count]
        bars = axes.bar(
            np.arange(len(shares)) + (place - 0.5) * width, shares, width, label=f"{count} per request", zorder=2
        )
        axes.bar_label(bars, fmt="%.3f", fontsize=8, label_type="center")
    for place, goal in enumerate(GOALS.values()):
        axes.hlines(goal, place - 0.45, place + 0.45, color="black", linestyle="dashed", zorder=3)
    axes.set(
        xticks=range(len(GOALS)),
        xticklabels=[f"{milliseconds:g} ms" for milliseconds in GOALS],
        xlabel="device time of an image",
        ylabel="share of the ideal (dashed: goal)",
        ylim=(0, 1.1),
        title=f"Engine alone, batches to {MAX_BATCH}",
    )
    axes.legend(loc="lower left")
    return figure


def main() -> None:
    """Prints the table and writes it, with JSON and a plot."""
    parser = argparse.ArgumentParser(description="The engine's share of a device's time.")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure, after a warm-up of a fifth of it")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the server sets it
    rows = []
    with uvloop_runner() as runner:
        for milliseconds in GOALS:
            for count in IMAGES_PER_REQUEST:
                rows.append(runner.run(measure(milliseconds, count, seconds=arguments.seconds)))
                print(
                    f"  {milliseconds:g} ms an image, {count} per request: {rows[-1].share_of_ideal:.3f} of the ideal",
                    flush=True,
                )
    lines = [
        [
            f"{milliseconds:g} ms",
            *(row.share_of_ideal for row in rows if row.milliseconds_per_image == milliseconds),
            *(row.images_per_second for row in rows if row.milliseconds_per_image == milliseconds),
            goal,
        ]
        for milliseconds, goal in GOALS.items()
    ]
    head = ["device time of an image"]
    head += [f"share of ideal, {count} per request" for count in IMAGES_PER_REQUEST]
    head += [f"images/s, {count} per request" for count in IMAGES_PER_REQUEST] + ["goal"]
    document = {
        "machine": machine("numpy", "uvloop"),
        "settings": {
            "image_size": SIZE,
            "max_batch_size": MAX_BATCH,
            "images_in_flight": IN_FLIGHT,
            "seconds": arguments.seconds,
        },
        "rows": [asdict(row) for row in rows],
        "goals": {f"{milliseconds:g} ms": goal for milliseconds, goal in GOALS.items()},
    }
    write("engine", arguments.output, document=document, tables=[markdown(head, lines)], figure=plot(rows))


if __name__ == "__main__":
    main()
