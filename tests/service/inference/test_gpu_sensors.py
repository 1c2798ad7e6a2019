"""Readings of a GPU's driver, of which there is none here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from service.inference.gpu_sensors import open_sensors
from tests.fake_cuda import FakeCuda


class DriverError(Exception):
    pass


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver's functions of NVML for the GPU with the UUID of the fake device."""
    functions = SimpleNamespace(
        NVMLError=DriverError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-0": "handle"}[uuid],
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu={"handle": 50}[handle]),
        nvmlDeviceGetTemperature=lambda handle, sensor: {("handle", 0): 61}[handle, sensor],
    )
    module = ModuleType("pynvml")
    vars(module).update(vars(functions))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module  # type: ignore[return-value]


def test_a_gpu_has_readings_of_its_driver(driver: SimpleNamespace) -> None:
    with FakeCuda():
        sensors = open_sensors(torch.device("cuda:0"))
    assert sensors is not None
    assert sensors.read() == {"utilization": 0.5, "temperature": 61.0}


def test_readings_that_a_driver_does_not_have_are_left_out(driver: SimpleNamespace) -> None:
    def refuse(_: object) -> None:
        raise DriverError("not supported")

    with FakeCuda():
        sensors = open_sensors(torch.device("cuda:0"))
    driver.nvmlDeviceGetUtilizationRates = refuse
    assert sensors is not None
    assert sensors.read() is None


def test_a_driver_that_cannot_be_reached_is_logged(driver: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise DriverError("driver not loaded")

    driver.nvmlInit = refuse
    with FakeCuda():
        assert open_sensors(torch.device("cuda:0")) is None
    assert "temperature of cuda:0 are not available: driver not loaded" in caplog.text
