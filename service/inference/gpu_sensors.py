"""What the driver tells of a GPU (NVML): how busy it is, by whomever, and how hot."""

from __future__ import annotations

import logging

import torch

__all__ = ["GpuSensors", "open_sensors"]

log = logging.getLogger(__name__)


class GpuSensors:
    """Of the GPU with a UUID: ordinals differ where ``CUDA_VISIBLE_DEVICES`` hides some. Raises ``pynvml.NVMLError``, and
    ``ImportError`` where nvidia-ml-py is not installed.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml  # only where there is a GPU

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def read(self) -> dict[str, float] | None:
        """``utilization``, the part of the last moments in which it computed, 0 to 1, and ``temperature`` in degrees
        Celsius; None where the driver does not tell.
        """
        try:
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
            celsius = self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU)
        except self._nvml.NVMLError:
            return None
        return {"utilization": busy / 100, "temperature": float(celsius)}


def open_sensors(device: torch.device) -> GpuSensors | None:
    """Those of a CUDA device; None for a CPU, and where there is no way to the driver, which is logged."""
    if device.type != "cuda":
        return None
    try:
        return GpuSensors(str(torch.cuda.get_device_properties(device).uuid))
    except Exception as error:
        log.warning("no utilisation and temperature of %s: %s", device, error)
        return None
