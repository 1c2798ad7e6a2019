"""Standard error that nobody reads: lines are dropped and counted, and nothing waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.telemetry.log_writer import LogWriter

SOON = 60.0

LOUD = """
import logging, sys, threading
from service.processes.process import configure_process
import structlog
from service.telemetry.log_writer import dropped_log_lines
configure_process("front end 0", log_level="info", log_format="json")
threads = [threading.Thread(target=logging.getLogger(__name__).info, args=("x" * 1000,)) for _ in range(2000)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for _ in range(1000):
    structlog.get_logger().info("request")
print("printed", file=sys.stderr, flush=True)
print(dropped_log_lines())
raise RuntimeError("the end")
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


def read(descriptor: int, size: int) -> bytes:
    text = b""
    while len(text) < size:
        text += os.read(descriptor, size - len(text))
    return text


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    lines = [f"line {number} \ud800\n" for number in range(100)]
    for line in lines:
        writer.write(line)
    writer.drain(SOON)
    expected = "".join(lines).encode(errors="backslashreplace")
    assert read(pipe[0], len(expected)) == expected
    assert writer.dropped == 0


def test_lines_that_nobody_reads_are_dropped_and_counted_and_reading_goes_on_later(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)  # as a parent process may have set it
    writer = LogWriter(writing, max_bytes=10_000)
    line = "x" * 999 + "\n"
    for _ in range(1000):
        writer.write(line)
    assert 0 < writer.dropped < 1000
    kept = 1000 - writer.dropped
    assert read(reading, kept * len(line)) == line.encode() * kept
    writer.drain(SOON)
    writer.write("more\n")
    assert read(reading, 5) == b"more\n"
    assert sum(map(int, re.findall(r"(\d+) log lines were dropped", caplog.text))) == writer.dropped


def test_draining_waits_no_longer_than_it_may(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    for _ in range(100):
        writer.write("x" * 1000)
    writer.drain(0.01)
    draining = threading.Thread(target=writer.drain, args=(SOON,))
    draining.start()
    read(pipe[0], 100_000)
    draining.join(SOON)
    assert not draining.is_alive()


def test_lines_that_cannot_be_written_are_dropped(pipe: tuple[int, int]) -> None:
    with Path("/dev/full").open("wb") as full:
        writer = LogWriter(full.fileno())
        writer.write("lost\n")
        writer.drain(SOON)
        assert writer.dropped == 1


def test_a_process_whose_standard_error_nobody_reads_goes_on_and_ends() -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-c", LOUD]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, text=True, check=False, timeout=60)
    os.close(writing)
    assert ended.returncode == 1
    assert int(ended.stdout) > 1000
    assert read(reading, 13) == b'{"event":"xxx'
    os.close(reading)
