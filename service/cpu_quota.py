"""How many processor cores this process may use: a container's share counts, the machine's size does not.

::

    affinity (taskset, cpuset)  ─┐
                                 ├─ the least of them, at least 1
    cgroup quota, v2 and v1     ─┘     of this group and every group above it

A quota of 2.5 cores gives 2 threads: a parallel region waits for its slowest thread, and one that is throttled half of the
time slows all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def usable_cores(*, root: Path = Path("/")) -> int:
    """Cores, at least 1. ``root`` is where ``/proc`` and ``/sys`` are."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, int(min([float(present), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group this process is in may use, where it is limited."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for mount in (mounts, mounts / "unified"):
                for folder in _upwards(mount, path):
                    yield from _quota(folder / "cpu.max")
        elif "cpu" in controllers.split(","):
            for mount in (mounts / name for name in _V1_FOLDERS):
                for folder in _upwards(mount, path):
                    yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those above it. In a container the path may be the host's, and only the mount exists."""
    group = mount / path.lstrip("/")
    while group != mount and mount in group.parents:
        yield group
        group = group.parent
    yield mount


def _quota(*files: Path) -> Iterator[float]:
    """Microseconds of processor time a period, and the period: in one file (v2), or in two (v1)."""
    try:
        quota, period = (word for file in files for word in file.read_text().split())
        if quota not in ("max", "-1") and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
