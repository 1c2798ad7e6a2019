"""Resolving the devices setting to device names."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.processes import device_names as module
from service.processes.device_names import device_names
from service.settings import Settings

pytestmark = pytest.mark.anyio


async def test_named_devices_are_taken_as_they_are() -> None:
    assert await device_names("cpu") == ["cpu"]
    assert await device_names("cuda:1,cuda:0") == ["cuda:1", "cuda:0"]


async def test_gpus_are_not_counted_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRIVERS", ("no-such-driver",))
    monkeypatch.setattr(module, "_COUNT", "raise SystemExit('asked')")
    assert await device_names("auto") == ["cpu"]
    assert await device_names("cuda") == ["cuda:0"]


@pytest.mark.parametrize(
    ("answer", "automatic", "named"),
    [
        ("print(2)", ["cuda:0", "cuda:1"], ["cuda:0", "cuda:1"]),
        ("print(0)", ["cpu"], ["cuda:0"]),
        ("raise SystemExit('no torch')", ["cpu"], ["cuda:0"]),
    ],
)
async def test_with_a_driver_torch_counts_the_gpus(
    monkeypatch: pytest.MonkeyPatch, answer: str, automatic: list[str], named: list[str]
) -> None:
    monkeypatch.setattr(module, "_DRIVERS", ("null",))
    monkeypatch.setattr(module, "_COUNT", answer)
    assert await device_names("auto") == automatic
    assert await device_names("cuda") == named


@pytest.mark.parametrize("devices", ["gpu", "cuda:", "cpu,cuda", "cuda:0,cuda:0", ""])
def test_invalid_devices_are_rejected(devices: str) -> None:
    with pytest.raises(ValidationError, match="devices"):
        Settings(devices=devices)


def test_one_process_runs_one_device() -> None:
    with pytest.raises(ValidationError, match="'inline' runs one device"):
        Settings(workers="inline", devices="cuda:0,cuda:1")
