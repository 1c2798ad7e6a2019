"""Compares decoded pixels with Chromium's, over files of all formats, modes, color spaces and orientations.

Run ``python -m tests.benchmarks.browser_pixels`` (a minute; needs ``chromium``). It prints each file whose mean difference
is over three levels, and the number of files by format. Left out are TIFF and HEIC, which Chromium does not show, the
orientation of WebP, which it ignores, and the alpha of AVIF, which it changes (6 levels from the original; here 2).
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import skimage.data
from PIL import ExifTags, Image
from playwright.sync_api import Page, sync_playwright

from models.arrays import Pixels
from models.preprocessing_options import PreprocessingOptions
from service.errors import ServiceError
from service.imaging.decoding import decode_image
from service.imaging.formats import ACCEPTED_FORMATS
from service.imaging.limits import MediaLimits
from tests.service.imaging.image_files import save
from tests.service.imaging.test_color import (
    ADOBE_RGB,
    CICP_P3,
    ICC_P3,
    PROFILES,
    PROPHOTO,
    S_RGB,
    chromaticities,
    cmyk_profile,
    gamma,
    srgb_profile,
    stored_in,
    with_chunks,
)
from tests.service.imaging.test_odd_files import bmp

SIDE, MOST = 64, 3.0
OPTIONS = PreprocessingOptions(color="srgb")

_DRAW = """async ([type, data]) => {
  const image = new Image();
  image.src = `data:${type};base64,${data}`;
  try { await image.decode(); } catch (error) { return null; }
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/png" });
  return Array.from(new Uint8Array(await blob.arrayBuffer()));
}"""


def pictures() -> Iterator[tuple[str, Image.Image]]:
    for name in ("astronaut", "coffee"):
        rgb = Image.fromarray(getattr(skimage.data, name)()).resize((SIDE, SIDE * 3 // 4))
        yield name, rgb


def modes(rgb: Image.Image) -> dict[str, Image.Image]:
    ramp = Image.linear_gradient("L").resize(rgb.size)
    rgba = rgb.copy()
    rgba.putalpha(ramp)
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    gray = rgb.convert("L")
    return {
        "1": rgb.convert("1"), "L": gray, "LA": Image.merge("LA", (gray, ramp)), "P": rgb.quantize(64), "RGB": rgb,
        "RGBA": rgba, "CMYK": rgb.convert("CMYK"), "I;16": deep,
    }  # fmt: skip


FORMATS: dict[str, tuple[list[str], dict[str, object]]] = {
    "JPEG": (["L", "RGB", "CMYK"], {"quality": 95}),
    "PNG": (["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], {}),
    "WEBP": (["L", "RGB", "RGBA"], {"lossless": True}),
    "AVIF": (["L", "RGB"], {"quality": 95, "speed": 10}),
    "GIF": (["1", "L", "P"], {}),
    "BMP": (["1", "L", "P", "RGB"], {}),
}


def files() -> Iterator[tuple[str, str, bytes]]:
    """Name, format and content of each file."""
    profiles = {"none": None, "sRGB": srgb_profile(), **PROFILES}
    for name, rgb in pictures():
        for format_name, (names, options) in FORMATS.items():
            has_metadata, is_turned = format_name not in {"GIF", "BMP"}, format_name in {"JPEG", "PNG", "AVIF"}
            for mode in names:
                for space, profile in profiles.items() if has_metadata else [("none", None)]:
                    image = modes(stored_in(rgb, profile) if profile else rgb)[mode]
                    if mode == "CMYK" and profile is not None:
                        profile = cmyk_profile(9)
                    for orientation in range(1, 9) if is_turned and space in {"none", "Display P3"} else [1]:
                        exif = Image.Exif()
                        exif[ExifTags.Base.Orientation] = orientation
                        extra = {"exif": exif, "icc_profile": profile} if has_metadata else {}
                        yield (
                            f"{name} {mode} {space} {orientation}",
                            format_name,
                            save(image, format_name, **options, **extra),
                        )
        yield from _special(name, rgb)


def _special(name: str, rgb: Image.Image) -> Iterator[tuple[str, str, bytes]]:
    for chunks in (
        [S_RGB], [CICP_P3], [ICC_P3], [ICC_P3, S_RGB], [gamma(0.45455)], [gamma(1.0)], [gamma(0.6)],
        [gamma(1 / 1.8), chromaticities(PROPHOTO)], [gamma(1 / 2.2), chromaticities(ADOBE_RGB)], [S_RGB, gamma(1.0)],
    ):  # fmt: skip
        yield f"{name} chunks {[chunk[4:8].decode() for chunk in chunks]}", "PNG", with_chunks(rgb, *chunks)
    for options in ({"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}):
        yield f"{name} {options}", "JPEG", save(rgb, "JPEG", quality=95, **options)
    gray = np.asarray(rgb.convert("L")).astype(np.uint32)
    for masks in ((0xF00, 0xF0, 0xF), (0xF00, 0xF0, 0xF, 0xF000), (0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F, 0x8000)):
        yield f"{name} bit fields {masks}", "BMP", bmp(16, masks, gray * 257)
    frames = [rgb, rgb.rotate(90)]
    for format_name in ("GIF", "WEBP"):
        yield f"{name} animated", format_name, save(frames[0], format_name, save_all=True, append_images=frames[1:])


def shown(page: Page, format_name: str, data: bytes) -> Pixels | None:
    result = page.evaluate(_DRAW, [ACCEPTED_FORMATS[format_name], base64.b64encode(data).decode()])
    if result is None:
        return None
    return np.asarray(Image.open(io.BytesIO(bytes(result))).convert("RGB"))


def compare(page: Page, format_name: str, data: bytes) -> str | None:
    """What differs, or None."""
    expected = shown(page, format_name, data)
    try:
        pixels = np.asarray(decode_image(data, limits=MediaLimits(), options=OPTIONS).image)
    except ServiceError as error:
        return None if expected is None else str(error)
    if expected is None:
        return "the browser does not show it"
    if expected.shape != pixels.shape:
        return f"{expected.shape} in the browser, here {pixels.shape}"
    difference = float(np.abs(pixels.astype(int) - expected).mean())
    return f"{difference:.1f} levels" if difference > MOST else None


def main() -> int:
    counts, differing = Counter[str](), 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--force-color-profile=srgb", "--no-sandbox"]
        )
        page = browser.new_page()
        for name, format_name, data in files():
            counts[format_name] += 1
            if (difference := compare(page, format_name, data)) is not None:
                differing += 1
                print(f"{format_name} {name}: {difference}")
        browser.close()
    print(f"{sum(counts.values())} files, {differing} differ: {dict(counts)}")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
