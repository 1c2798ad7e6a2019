"""Names of devices, with and without CUDA devices."""

from __future__ import annotations

import pytest
import torch

from models.runtime.device_names import select_device


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Makes PyTorch find two CUDA devices; the list gets each that becomes the current one."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    return made_current


@pytest.mark.parametrize(
    ("name", "index", "expected"), [("auto", 0, "cuda:0"), ("cuda", 1, "cuda:1"), ("cuda:1", 0, "cuda:1")]
)
def test_a_cuda_device_has_an_index_and_becomes_the_current_one(
    name: str, index: int, expected: str, current: list[torch.device]
) -> None:
    assert select_device(name, index=index) == torch.device(expected)
    assert current == [torch.device(expected)]


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_without_cuda_devices_auto_is_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device(name) == torch.device("cpu")
    with pytest.raises(ValueError, match="finds no CUDA device here, not cuda:0"):
        select_device("cuda")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "finds only 2 CUDA devices here, not cuda:2"),
        ("mps", "'mps' is not a device: use auto, cpu, cuda or cuda:N"),
        ("gpu", "'gpu' is not a device"),
    ],
)
def test_other_names_are_refused(name: str, message: str, current: list[torch.device]) -> None:
    with pytest.raises(ValueError, match=message):
        select_device(name)
    assert current == []
