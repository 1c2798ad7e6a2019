"""Photographs, golden cases and networks that many tests share."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.memory import trim_heap
from tests.programs import pytest_terminal_summary as pytest_terminal_summary

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import weights as filler

GOLDEN = Path(__file__).parent / "golden"
# Fixtures of a server that the tests of many files share: all of these tests run in one worker.
WAITING = ("tests/deploy", "tests/e2e", "tests/fuzz")
SHARED_SERVERS = ("exact_server", "server", "keyed_server")

os.environ.setdefault(
    "TITOK_RUNTIME", "torch"
)  # also of the processes that tests start: OpenVINO compiles at their start

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and so do the processes that they start
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # execnet ignores SIGINT, and processes that are started inherit that; a handler of Python's they do not inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Manifest = Mapping[str, Any]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of a file in one worker (its servers are started once), and those that share a server.

    The longest file comes first. Then files that wait for servers alternate with several that compute, so that while one
    worker waits the other one uses the cores.
    """
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        shared = next((name for name in SHARED_SERVERS if name in getattr(item, "fixturenames", ())), None)
        group = mark.args[0] if mark else shared or item.nodeid.partition("::")[0]
        if mark is None:
            item.add_marker(pytest.mark.xdist_group(group))
        groups[group].append(item)
    ordered = groups.pop("tests/models/networks/test_parity.py", [])
    waiting = [group for group in groups.values() if group[0].nodeid.startswith(WAITING)]
    computing = [group for group in groups.values() if not group[0].nodeid.startswith(WAITING)]
    each = -(-len(computing) // max(1, len(waiting)))
    for group in waiting:
        ordered += chain(group, *computing[:each])
        del computing[:each]
    items[:] = [*ordered, *chain(*computing)]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fails where xdist did not apply the groups: without them, each worker starts the servers of every file."""
    if session.config.getoption("loadgroup", default=False):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist cannot group tests with this pytest"


@pytest.fixture(autouse=True, scope="module")
def memory_after_each_file() -> Iterator[None]:
    yield
    trim_heap()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def golden_case() -> Callable[[str], Any]:
    """The arrays that the published implementation computed, by the name of the case."""
    return lambda name: np.load(GOLDEN / "cases" / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def golden_manifest() -> Callable[[str], Manifest]:
    """Names and shapes of a published model's tensors, and its configuration."""
    return lambda name: json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def golden_weights(golden_manifest: Callable[[str], Manifest]) -> Callable[..., dict[str, torch.Tensor]]:
    """The synthetic weights (seed 0) that the golden cases were computed with: all of a network, or some by their names."""

    def make(name: str, keys: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        tensors = golden_manifest(name)["tensors"]
        chosen = tensors if keys is None else {key: tensors[key] for key in keys}
        return {key: torch.from_numpy(value) for key, value in filler.state_dict(chosen).items()}

    return make


@pytest.fixture(scope="session")
def golden_noise() -> Callable[..., np.ndarray]:
    """Uniform noise by name and shape, as the recorded traces used it."""
    return filler.uniform


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Real photographs of several sizes and shapes."""
    data = pytest.importorskip("skimage.data", reason="the photographs are scikit-image's")
    return [Image.fromarray(image()) for image in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
