"""Device utilisation of the engine, without HTTP: ``make bench``.

A fake device takes a fixed time per image. The share of the ideal is the throughput relative to a device that never
waits. Every answer is checked. The device runs in a separate process, as in the service, or in a thread of the engine's
process.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from service.engine import Engine, InlineLink, LaneLimits
from service.engine.protocol import RowState, Stepped
from service.engine.remote import RemoteLink
from service.engine.worker import DeviceServer
from service.processes.process import event_loop
from tests.benchmarks.load import throughput
from tests.benchmarks.report import OUTPUT, machine, markdown, write

SIZE = 256
MAX_BATCH = 256
# One batch at the device, one that has gathered, and one on its way in.
IN_FLIGHT = 3 * MAX_BATCH
GOALS = {1.0: 0.97, 0.3: 0.94, 0.1: 0.88}  # by milliseconds of an image
IMAGES_PER_REQUEST = (1, 8)
FORMS = ("process", "inline")
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

    def step(self, rows: Sequence[RowState]) -> Stepped:
        raise NotImplementedError


@dataclass(frozen=True)
class Row:
    """One figure: the share of the ideal, and images a second."""

    form: str
    milliseconds_per_image: float
    images_per_request: int
    images_per_second: float
    share_of_ideal: float


@contextmanager
def engine_of(form: str, seconds_per_image: float) -> Iterator[Engine]:
    """The engine under test, not started."""
    limits = LaneLimits(max_batch_size=MAX_BATCH, max_images=2 * IN_FLIGHT, max_bytes=2 * IN_FLIGHT * SIZE * SIZE * 3)
    if form == "inline":
        yield Engine([InlineLink(partial(TimedDevice, seconds_per_image))], limits=limits)
        return
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/worker"
        worker = multiprocessing.get_context("spawn").Process(target=run_worker, args=(address, seconds_per_image))
        worker.start()
        try:
            yield Engine([RemoteLink("timed", address)], limits=limits)
        finally:
            worker.kill()
            worker.join()


def run_worker(address: str, seconds_per_image: float) -> None:
    """What the other process does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        DeviceServer(listener, partial(TimedDevice, seconds_per_image)).run()


async def measure(engine: Engine, images_per_request: int, *, seconds: float) -> float:
    """Images a second of many callers that each send their next request when the last one is answered."""
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
            deadline = time.monotonic() + 60
            with await engine.open_encode(len(images), image_size=SIZE, deadline=deadline) as ticket:
                for index, image in enumerate(images):
                    ticket.put(index, image)
                encoded = await ticket.result()
            if not np.array_equal(encoded.tokens, expected):
                raise AssertionError("a request got the tokens of another one")
            if (now := time.perf_counter()) > warm:
                finished.append(now)

    async with asyncio.TaskGroup() as group:
        for images in requests:
            group.create_task(caller(images))
    await engine.stop(10)
    return throughput([time for time in finished if time <= end], seconds=seconds) * images_per_request


def plot(rows: Sequence[Row]) -> Figure:
    """Shares of the ideal, by the device's speed, and the goals."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.22
    series = [(form, count) for form in FORMS for count in IMAGES_PER_REQUEST]
    for place, (form, count) in enumerate(series):
        shares = [row.share_of_ideal for row in rows if (row.form, row.images_per_request) == (form, count)]
        offset = (place - (len(series) - 1) / 2) * width
        bars = axes.bar(np.arange(len(shares)) + offset, shares, width, label=f"{form}, {count} per request", zorder=2)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, label_type="center")
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
    parser = argparse.ArgumentParser(description="Measure the engine's device utilisation.")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure, after a warm-up of a fifth of it")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the server sets it
    rows = []
    for form in FORMS:
        for milliseconds in GOALS:
            for count in IMAGES_PER_REQUEST:
                with engine_of(form, milliseconds / 1000) as engine, event_loop() as runner:
                    rate = runner.run(measure(engine, count, seconds=arguments.seconds))
                rows.append(Row(form, milliseconds, count, rate, rate * milliseconds / 1000))
                print(
                    f"  {form}: {milliseconds:g} ms an image, {count} per request: "
                    f"{rows[-1].share_of_ideal:.3f} of the ideal",
                    flush=True,
                )
    lines = []
    for form in FORMS:
        for milliseconds, goal in GOALS.items():
            chosen = [row for row in rows if (row.form, row.milliseconds_per_image) == (form, milliseconds)]
            figures = [row.share_of_ideal for row in chosen] + [row.images_per_second for row in chosen]
            lines.append([form, f"{milliseconds:g} ms", *figures, goal])
    head = ["worker", "device time of an image"]
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
