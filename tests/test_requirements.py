"""The lock files hold what the Makefile's targets need: `make run` installs one, `make test` another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
DESCRIBED: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = DESCRIBED["project"]["optional-dependencies"]
# Only PyTorch's CUDA builds need its CUDA packages; they are in a lock of their own.
CUDA = re.compile(r"nvidia-[^m]|cuda-|triton")


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {match[0].lower().replace("_", "-") for match in found if match and not CUDA.match(match[0])}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("image", ["otel"]),
        ("run", ["otel", "bulk", "train", "evaluate"]),
        ("dev", ["otel", "bulk", "train", "evaluate", "ray"]),
    ],
)
def test_a_lock_has_the_packages_of_the_project_and_of_its_extras(lock: str, extras: list[str]) -> None:
    locked = names((PROJECT / "requirements" / f"{lock}.lock").read_text().splitlines())
    assert names(DESCRIBED["project"]["dependencies"]) <= locked
    for extra in extras:
        assert names(EXTRAS[extra]) <= locked, extra
    if lock == "dev":
        assert names(DESCRIBED["dependency-groups"]["dev"]) <= locked


def test_the_cuda_packages_of_the_locked_torch_are_locked() -> None:
    locked = (PROJECT / "requirements" / "cuda.lock").read_text().splitlines()
    assert all(CUDA.match(line) for line in locked)
    assert {"nvidia-cublas", "nvidia-nccl-cu13", "triton"} <= {line.partition("==")[0] for line in locked}


def test_the_index_of_the_cuda_build_is_that_of_the_locks() -> None:
    """Every version of the locks is on PyPI; an index of PyTorch for one version of CUDA ends with it."""
    named = {
        path: re.findall(r"TORCH_INDEX[=:] ?(\S+)", (PROJECT / path).read_text())
        for path in ("Dockerfile", "deploy/compose.gpu.yml", "docs/deployment.md")
    }
    assert named == {
        "Dockerfile": ["https://pypi.org/simple", "https://download.pytorch.org/whl/cpu"],
        "deploy/compose.gpu.yml": ["https://pypi.org/simple"],
        "docs/deployment.md": ["https://pypi.org/simple"],
    }
