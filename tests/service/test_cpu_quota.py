"""Usable CPU cores: affinity and control group quotas."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cpu_quota import usable_cores
from service.settings import Settings

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Writes the kernel files of a process on 16 cores: its groups, and files below /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def write(groups: str, **files: str) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, content in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("content", "cores"),
    [("400000 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 16), ("nonsense", 16)],
)
def test_a_quota_is_rounded_down_to_whole_cores(machine: Machine, content: str, cores: int) -> None:
    assert usable_cores(root=machine("0::/\n", **{"cpu.max": content})) == cores


def test_the_lowest_quota_of_all_parent_groups_counts(machine: Machine) -> None:
    root = machine(
        "0::/pods/pod/container\n",
        **{
            "pods/cpu.max": "800000 100000",
            "pods/pod/cpu.max": "300000 100000",
            "pods/pod/container/cpu.max": "max 100000",
        },
    )
    assert usable_cores(root=root) == 3


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_cgroup_v1_quotas_count_even_if_only_the_host_path_is_known(machine: Machine, folder: str) -> None:
    root = machine(
        "4:cpu,cpuacct:/docker/0123\n3:cpuset:/docker/0123\n",
        **{f"{folder}/cpu.cfs_quota_us": "150000\n", f"{folder}/cpu.cfs_period_us": "50000\n"},
    )
    assert usable_cores(root=root) == 3


def test_without_a_quota_the_affinity_counts(machine: Machine) -> None:
    root = machine("1:cpu:/\n0::/\n", **{"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert usable_cores(root=root) == 16


def test_without_control_groups_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert usable_cores(root=tmp_path) == 3


def test_threads_are_as_many_as_cores_unless_they_are_set() -> None:
    assert Settings().device_threads == Settings().image_threads == usable_cores()
    assert Settings(threads=3).device_threads == 3
    assert Settings(decode_threads=5).image_threads == 5
