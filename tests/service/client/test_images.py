"""Image sources: paths, bytes, Pillow images and arrays."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from models.preprocess import to_rgb
from service.client.images import image_bytes, is_image
from service.imaging.decoding import decode_image
from service.imaging.limits import MediaLimits


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def seen(data: bytes) -> np.ndarray:
    """The pixels as the service decodes them."""
    return np.asarray(decode_image(data, limits=MediaLimits()).image)


def test_files_are_uploaded_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"anything")
    for source in (path, str(path), b"anything", bytearray(b"anything"), memoryview(b"anything")):
        assert is_image(source)
        assert image_bytes(source) == b"anything"


def test_arrays_are_uploaded_losslessly() -> None:
    assert (seen(image_bytes(pixels())) == pixels()).all()
    gray = pixels()[..., 0]
    assert (seen(image_bytes(gray)) == gray[..., None]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pillow_images_of_any_mode_are_uploaded_losslessly(mode: str) -> None:
    image = Image.fromarray(pixels()).convert(mode)
    assert (seen(image_bytes(image)) == np.asarray(to_rgb(image))).all()


@pytest.mark.parametrize("mode", ["HSV", "PA", "RGBa", "La", "RGBX", "F", "I", "I;16", "I;16B", "LAB"])
def test_pillow_images_of_rare_modes_are_converted(mode: str) -> None:
    picture = Image.fromarray(np.full((4, 6, 3), (200, 120, 40), np.uint8))
    gray = np.asarray(picture.convert("L"), np.int64)
    if mode in ("I", "I;16", "I;16B"):
        dtype = {"I": np.int32, "I;16": np.uint16, "I;16B": ">u2"}[mode]
        image, expected = Image.fromarray((gray * 257).astype(dtype)), gray[..., None]
    elif mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image, expected = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB"), np.asarray(picture)
    else:
        between = {"PA": "P", "RGBa": "RGBA", "La": "LA"}.get(mode, "RGB")
        image = picture.convert(between).convert(mode)
        expected = gray[..., None] if mode in ("La", "F") else np.asarray(image.convert("RGB"))
    assert image.mode == mode
    assert np.abs(seen(image_bytes(image)) - expected.astype(np.int64)).max() <= 2


def test_an_open_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"any\nthing")
    with (tmp_path / "x.bin").open("rb") as file:
        assert is_image(file)
        assert image_bytes(file) == b"any\nthing"
    with (tmp_path / "x.bin").open() as text, pytest.raises(TypeError, match="mode 'rb'"):
        image_bytes(text)  # type: ignore[arg-type]


def test_the_exif_orientation_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "PNG", exif=exif)
    buffer.seek(0)
    opened = Image.open(buffer)
    assert (seen(image_bytes(opened)) == np.rot90(pixels(), -1)).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3), np.float32), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)],
    ids=["floats", "several", "four channels"],
)
def test_an_array_of_another_shape_or_type_raises(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels are uint8"):
        image_bytes(array)


def test_another_type_raises() -> None:
    assert not is_image(["a.jpg"])
    with pytest.raises(TypeError, match="not int"):
        image_bytes(3)  # type: ignore[arg-type]


def test_importing_the_client_imports_httpx_only() -> None:
    probe = """
import sys
for name in ("torch", "fastapi", "starlette", "uvicorn", "numpy", "PIL", "pydantic", "typer", "rich", "models"):
    sys.modules[name] = None  # importing it fails from here on
from service.client import AsyncTiTokClient, TiTokClient
TiTokClient("http://127.0.0.1:1").close()
"""
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
