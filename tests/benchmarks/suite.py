"""Wall time, CPU time and peak memory of the test suite: ``python -m tests.benchmarks.suite``.

Runs ``make test`` and samples the proportional set size (PSS) of all its processes together: memory that processes share
is counted once. Linux only. Arguments are passed to pytest.
"""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

INTERVAL_SECONDS = 2.0  # reading the memory maps of large processes costs time


def descendants(root: int) -> list[int]:
    """A process and all that it started, also those whose parent has ended within the same session."""
    children = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            children[int(status[1])].append(int(folder.name))
    found = [root]
    for process in found:
        found += children[process]
    return found


def pss_bytes(process: int) -> int:
    """0 for a process that has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Prints the figures after the output of the run."""
    begun, peak, at = time.monotonic(), 0, 0.0
    process = subprocess.Popen(["make", "test", f"ARGS={shlex.join(sys.argv[1:])}"])
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    while not ended.wait(INTERVAL_SECONDS):
        now = sum(map(pss_bytes, descendants(process.pid)))
        if now > peak:
            peak, at = now, time.monotonic() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{time.monotonic() - begun:.0f} s on {os.cpu_count()} cores, {used.ru_utime + used.ru_stime:.0f} s of CPU time, "
        f"at most {peak / 2**30:.2f} GiB in all processes together (after {at:.0f} s)"
    )
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
