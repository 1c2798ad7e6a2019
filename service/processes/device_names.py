"""Resolves ``TITOK_DEVICES`` to device names of this machine, without importing torch in this process."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)

# Entries in /dev of the NVIDIA (also under WSL) and AMD drivers. Without one, GPUs are not counted, which is slow.
_DRIVERS = ("nvidia*", "dxg", "kfd")
_COUNT = "import torch; print(torch.cuda.device_count())"
_COUNT_SECONDS = 120.0


async def device_names(devices: str) -> list[str]:
    """The device names of a validated setting: ``cpu``, ``cuda:0`` ... At least one; ``cuda`` without a GPU gives
    ``cuda:0``, whose worker then reports what is missing.
    """
    if devices not in ("auto", "cuda"):
        return devices.split(",")
    count = await _count_gpus() if _has_driver() else 0
    if count == 0:
        return ["cpu"] if devices == "auto" else ["cuda:0"]
    return [f"cuda:{index}" for index in range(count)]


def _has_driver() -> bool:
    return any(any(Path("/dev").glob(driver)) for driver in _DRIVERS)


async def _count_gpus() -> int:
    """Counts GPUs with torch, which respects drivers, visible devices and its own build, in a short-lived process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _COUNT),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # signals to the process group should not end it
    )
    try:
        async with asyncio.timeout(_COUNT_SECONDS):
            output, _ = await process.communicate()
        return int(output)
    except (TimeoutError, ValueError):
        log.warning("cannot count the GPUs of this machine")
        return 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
