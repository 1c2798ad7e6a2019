"""Throughput beside a process with two busy threads, as a share of that on the idle machine.

``python -m tests.benchmarks.busy_neighbour`` on an otherwise idle machine with two cores and h2load (a minute). The other
process has a session of its own, so that Linux's scheduler gives it as much as the whole service: a fair share is a half.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tests.benchmarks.load import Request, capacity, require_h2load
from tests.benchmarks.models import processor
from tests.benchmarks.served import DEFAULT_VARIANT, Model, jpegs, serve

__all__: list[str] = []

ROUNDS, SECONDS, IMAGES = 3, 4.0, 16
GOALS = {1: 0.35, 64: 0.45}  # connections: share
# SHA-256 of a large buffer runs without the interpreter's lock.
_BUSY = """
import hashlib, threading
def work():
    while True:
        hashlib.sha256(buffer)
buffer = bytes(1 << 24)
for _ in range(2):
    threading.Thread(target=work).start()
"""


@contextmanager
def busy_threads() -> Iterator[None]:
    """Another process that keeps two threads busy."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def rate(requests: list[Request], connections: int) -> float:
    """Images a second in a closed loop."""
    chosen = requests if connections >= len(requests) else requests[:1]
    return capacity(chosen, connections=connections, seconds=SECONDS, warm_up=1.0)[0]


def main() -> None:
    """Prints the shares, the medians of rounds in turn."""
    require_h2load()
    print(f"{processor()}, {DEFAULT_VARIANT}, JPEG to ids, no cache")
    with serve(Model(DEFAULT_VARIANT)) as (server, endpoint):
        requests = [endpoint.request(jpeg) for jpeg in jpegs(128, IMAGES)]
        print(f"runtimes: {[child['runtimes'] for child in server.health()['processes'] if 'runtimes' in child]}")
        for connections, goal in GOALS.items():
            idle, beside = [], []
            for _ in range(ROUNDS):
                idle.append(rate(requests, connections))
                with busy_threads():
                    beside.append(rate(requests, connections))
            share = float(np.median(np.divide(beside, idle)))
            rates = f"{np.median(idle):.0f} images/s idle, {np.median(beside):.0f} beside"
            print(f"| {connections} connections | {share:.2f} | >= {goal} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
