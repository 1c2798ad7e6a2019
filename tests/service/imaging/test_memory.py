"""Decoding takes no more memory than it reserves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from service.imaging.icc import cicp_profile
from tests.service.imaging.image_files import photograph, png, png_chunk
from tests.service.imaging.test_odd_files import bmp
from tests.service.imaging.test_png import animation

SIDES = (1600, 1200)
P3 = {"icc_profile": cicp_profile(12, 13)}


def turned() -> dict[str, object]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return {"exif": exif}


def variants(width: int, height: int) -> Iterator[tuple[str, Image.Image, str, dict[str, object]]]:
    """Name, image, format and options of files whose decoding needs much memory."""
    rgb = photograph("coffee", width, height)
    gray = rgb.convert("L")
    rgba = rgb.copy()
    rgba.putalpha(gray)
    for name, image in (("gray", gray), ("color", rgb), ("CMYK", rgb.convert("CMYK"))):
        yield f"JPEG {name}, turned", image, "JPEG", turned()
        yield f"JPEG {name}, progressive", image, "JPEG", {"progressive": True, "subsampling": 0, **turned()}
    yield "JPEG, P3, turned", rgb, "JPEG", {**P3, **turned()}
    yield "PNG with alpha, P3, turned", rgba, "PNG", {"compress_level": 1, **P3, **turned()}
    yield (
        "PNG of 16 bits",
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257),
        "PNG",
        {"transparency": 257, **turned()},
    )
    yield "PNG palette", rgb.quantize(16), "PNG", {"transparency": 3, **turned()}
    yield "WebP", rgb, "WEBP", {"method": 0, **turned()}
    yield "WebP with alpha", rgba, "WEBP", {"method": 0}
    yield "WebP with alpha, P3", rgba, "WEBP", {"method": 0, "lossless": True, **P3, **turned()}
    yield "AVIF", rgb, "AVIF", {"speed": 10, "subsampling": "4:4:4", **turned()}
    yield "AVIF with alpha, P3", rgba, "AVIF", {"speed": 10, **P3, **turned()}
    yield "GIF", rgb.quantize(16), "GIF", {"transparency": 3}
    yield "TIFF with alpha, P3", rgba, "TIFF", {"compression": "tiff_lzw", **P3}


def write_all(folder: Path, width: int, height: int) -> list[str]:
    folder.mkdir()
    names = []
    for name, image, format_name, options in variants(width, height):
        image.save(folder / str(len(names)), format_name, **options)
        names.append(name)
    deep = np.asarray(photograph("coffee", width, height)).astype(np.uint16) * 257
    planes = np.ascontiguousarray(np.moveaxis(deep, 2, 0))
    tifffile.imwrite(folder / str(len(names)), planes, photometric="rgb", planarconfig="separate", rowsperstrip=height)
    (folder / str(len(names) + 1)).write_bytes(bmp(32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), deep[:, :, 0]))
    rows = np.hstack([np.zeros((height, 1), np.uint8), deep.astype(">u2").view(np.uint8).reshape(height, -1)])
    key = png_chunk(b"tRNS", bytes(6))
    still = png(width, height, depth=16, colour=2, rows=rows.tobytes(), extra=key)
    (folder / str(len(names) + 2)).write_bytes(still)
    (folder / str(len(names) + 3)).write_bytes(animation(still))
    return [
        *names,
        "TIFF of 16-bit planes",
        "BMP of bit fields",
        "PNG of 16 bits, key",
        "PNG of 16 bits, key, animation",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_decoding_takes_no_more_memory_than_it_reserves(tmp_path: Path) -> None:
    names = write_all(tmp_path / "large", *SIDES)
    write_all(tmp_path / "small", 40, 30)
    paths = "".join(f"{tmp_path}/large/{index} {tmp_path}/small/{index}\n" for index in range(len(names)))

    ended = subprocess.run(
        [sys.executable, "-m", "tests.service.imaging.peak_memory"],
        input=paths, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip

    pixels = SIDES[0] * SIDES[1]
    measured = [[int(number) / pixels for number in line.split()] for line in ended.stdout.splitlines()]
    table = {name: (round(peak, 1), round(reserved, 1)) for name, (peak, reserved) in zip(names, measured, strict=True)}
    assert {name: bytes_ for name, bytes_ in table.items() if bytes_[0] > bytes_[1]} == {}
    assert min(peak for peak, _ in table.values()) > 3  # it was measured
