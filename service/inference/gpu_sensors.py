"""Utilization and temperature of a GPU, read from its driver (NVML)."""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)


class GpuSensors:
    """The sensors of the GPU with a UUID (indices differ if ``CUDA_VISIBLE_DEVICES`` hides GPUs). Raises
    ``pynvml.NVMLError``, and ``ImportError`` if nvidia-ml-py is not installed.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml  # only where there is a GPU

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def read(self) -> dict[str, float] | None:
        """``utilization``, the fraction of the last sample period in which it computed (by any process), 0 to 1, and
        ``temperature`` in degrees Celsius; None if the driver does not report them.
        """
        try:
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
            celsius = self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU)
        except self._nvml.NVMLError:
            return None
        return {"utilization": busy / 100, "temperature": float(celsius)}


def open_sensors(device: torch.device) -> GpuSensors | None:
    """The sensors of a CUDA device; None for a CPU, and, with a log line, if the driver cannot be reached."""
    if device.type != "cuda":
        return None
    try:
        return GpuSensors(str(torch.cuda.get_device_properties(device).uuid))
    except Exception as error:
        log.warning("utilization and temperature of %s are not available: %s", device, error)
        return None
