"""Photographs, golden cases and networks that many tests share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import pytest_terminal_summary as pytest_terminal_summary

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import weights as filler

GOLDEN = Path(__file__).parent / "golden"

Manifest = Mapping[str, Any]


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
def golden_weights(golden_manifest: Callable[[str], Manifest]) -> Callable[[str], dict[str, torch.Tensor]]:
    """The synthetic weights (seed 0) that the golden cases were computed with."""
    return lambda name: {
        key: torch.from_numpy(value) for key, value in filler.state_dict(golden_manifest(name)).items()
    }


@pytest.fixture(scope="session")
def golden_noise() -> Callable[..., np.ndarray]:
    """Uniform noise by name and shape, as the recorded traces used it."""
    return filler.uniform


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Real photographs of several sizes and shapes."""
    data = pytest.importorskip("skimage.data", reason="the photographs are scikit-image's")
    return [Image.fromarray(image()) for image in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
