"""Measures the memory of decoding: reads the paths of files, writes the peak and the reserved bytes of each."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from models.preprocessing_options import PreprocessingOptions
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits

OPTIONS = PreprocessingOptions(color="srgb")


def kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def decode(data: bytes) -> int:
    reserved: list[int] = []
    decode_image(data, limits=MediaLimits(), options=OPTIONS, size=400, reserve=reserved.append).crop(400)
    return reserved[0]


def main() -> None:
    for line in sys.stdin:
        data, small = (Path(path).read_bytes() for path in line.split())
        decode(small)  # loads what a first image of its kind needs
        ctypes.CDLL(None).malloc_trim(0)
        before = kilobytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        reserved = decode(data)
        print((kilobytes("VmHWM") - before) * 1024, reserved)


if __name__ == "__main__":
    main()
