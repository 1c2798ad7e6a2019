"""Which devices ``TITOK_DEVICES`` means on this machine, found without importing torch here."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

__all__ = ["device_names"]

log = logging.getLogger(__name__)

# What the drivers of NVIDIA (also under WSL) and AMD leave in /dev. A machine without any pays for no look.
_DRIVERS = ("nvidia*", "dxg", "kfd")
_COUNT = "import torch; print(torch.cuda.device_count())"
_COUNT_SECONDS = 120.0


async def device_names(devices: str) -> list[str]:
    """The names of a checked setting: ``cpu``, ``cuda:0`` ... At least one; ``cuda`` without a GPU is ``cuda:0``, whose
    worker will say what is missing.
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
    """As torch counts them, which knows of drivers, visible devices and its own build, in a process that ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _COUNT),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a signal to the group is for those who know what to do with it
    )
    try:
        async with asyncio.timeout(_COUNT_SECONDS):
            output, _ = await process.communicate()
        return int(output)
    except (TimeoutError, ValueError):
        log.warning("the GPUs of this machine cannot be counted")
        return 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
