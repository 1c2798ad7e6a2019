"""Photographs in other color spaces and of many megapixels: tokens that change, images per second, time and memory.

Run ``python -m tests.benchmarks.photographs --data DIR`` (4 minutes; needs ``h2load`` and Linux). DIR contains tar files of
images. Large photographs are enlarged ones with noise, so that 12 megapixels take 3 MB, as those of a camera.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import Tokenizer
from models.preprocessing_options import PUBLISHED, PreprocessingOptions
from service.imaging.decoding import decode_image
from service.imaging.icc import SRGB_CHROMATICITIES, SRGB_CURVE, matrix_profile
from service.imaging.limits import MediaLimits
from tests.benchmarks.load import capacity, require_h2load
from tests.benchmarks.served import DEFAULT_VARIANT, Model, serve
from tests.e2e.conftest import Server
from tests.service.imaging.image_files import save
from tests.service.imaging.test_color import PROFILES, cmyk_profile, profile_bytes, stored_in

COLORS, LARGE, ROUNDS, CONNECTIONS, NOISE = 40, 100, 4, 8, 12
SIDES, LARGEST = (4000, 3000), (12_000, 9_000)
SRGB = PreprocessingOptions(color="srgb")
REDUCED = PreprocessingOptions(color="srgb", jpeg_scale="auto")


def photographs(data: Path) -> Iterator[Image.Image]:
    """The images of all tar files in a folder, in order."""
    for path in sorted(data.glob("*.tar*")):
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.name.endswith((".webp", ".jpg", ".jpeg", ".png")) and (file := archive.extractfile(member)):
                    yield Image.open(io.BytesIO(file.read())).convert("RGB")


def enlarged(image: Image.Image, sides: tuple[int, int]) -> bytes:
    """A baseline JPEG file of ``sides`` (width, height)."""
    large = np.array(image.resize(sides, Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (64, sides[0], 3)).astype(np.int16)
    for top in range(0, sides[1], 64):
        rows = large[top : top + 64]
        rows[:] = (rows + noise[: len(rows)]).clip(0, 255)
    return save(Image.fromarray(large), "JPEG", quality=90)


def tokens(tokenizer: Tokenizer, files: Iterable[bytes], options: PreprocessingOptions) -> NDArray[np.int64]:
    """Ids int64 [n, K] of image files."""
    size = tokenizer.image_size
    crops = [decode_image(data, limits=MediaLimits(), options=options, size=size).crop(size) for data in files]
    return tokenizer.encode(np.stack(crops)).cpu().numpy()


def color_lines(tokenizer: Tokenizer, images: Sequence[Image.Image]) -> Iterator[str]:
    """Shares of tokens that change when the files hold another color space; without other losses, except for JPEG."""
    originals = tokens(tokenizer, [save(image, "PNG") for image in images], SRGB)
    cmyk = cmyk_profile(17)
    stored: dict[str, Callable[[Image.Image], bytes]] = {
        "JPEG of quality 90, sRGB": lambda image: save(image, "JPEG", quality=90),
        "CMYK": lambda image: save(image.convert("CMYK"), "TIFF", icc_profile=cmyk),
        "ProPhoto, computed in float64": lambda image: save(through_prophoto(image), "PNG"),
        **{name: partial(_in_space, profile=profile) for name, profile in PROFILES.items()},
    }
    yield f"Tokens that change when {len(images)} photographs are stored in another way (srgb; raw):"
    for name, store in stored.items():
        files = [store(image) for image in images]
        srgb, raw = (float(np.mean(tokens(tokenizer, files, options) != originals)) for options in (SRGB, PUBLISHED))
        yield f"  {name:<30} {srgb:6.2%} {raw:6.2%}"


def _in_space(image: Image.Image, *, profile: bytes) -> bytes:
    return save(stored_in(image, profile), "PNG", icc_profile=profile)


def through_prophoto(image: Image.Image) -> Image.Image:
    """An sRGB image whose only loss is that of 8 bits in ProPhoto, and of 8 bits in sRGB afterwards."""
    srgb = _colorants(profile_bytes(matrix_profile(SRGB_CHROMATICITIES, SRGB_CURVE)))
    matrix = np.linalg.solve(_colorants(PROFILES["ProPhoto"]), srgb)
    values = np.asarray(image) / 255
    linear = np.where(values < 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    eight = np.round((linear @ matrix.T).clip(0, 1) ** (1 / 1.8) * 255) / 255
    linear = (eight**1.8 @ np.linalg.inv(matrix).T).clip(0, 1)
    values = np.where(linear < 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.round(values * 255).astype(np.uint8))


def _colorants(profile: bytes) -> NDArray[np.float64]:
    """The matrix from linear RGB to XYZ in a profile of ``matrix_profile``."""
    starts = [profile.index(b"XYZ \0\0\0\0", 128 + 76) + 20 * index + 8 for index in range(3)]
    return np.column_stack([np.frombuffer(profile, ">i4", 3, start) / 65536 for start in starts])


def scale_lines(tokenizer: Tokenizer, images: Sequence[Image.Image]) -> Iterator[str]:
    """Tokens that differ at the reduced scale; images per second of two services in alternating rounds."""
    differ = [
        np.not_equal(*(tokens(tokenizer, [data], options) for options in (SRGB, REDUCED)))
        for data in map(enlarged, images, repeat(SIDES))
    ]
    yield f"Tokens that differ at the reduced scale, {len(images)} JPEG files of 12 megapixels: {np.mean(differ):.2%}"
    bodies = [enlarged(image, SIDES) for image in images[:2]]
    rates: dict[str, list[float]] = {"auto": [], "exact": []}
    with ExitStack() as stack:
        model = Model(DEFAULT_VARIANT)
        endpoints = {scale: stack.enter_context(serve(model, jpeg_scale=scale))[1] for scale in rates}
        for scale, endpoint in list(endpoints.items()) * ROUNDS:
            requests = [endpoint.request(body) for body in bodies]
            rates[scale].append(capacity(requests, connections=CONNECTIONS, seconds=6, warm_up=2)[0])
    auto, exact = (np.median(values) for values in rates.values())
    ratio = np.median(np.divide(rates["auto"], rates["exact"]))
    yield f"12-megapixel JPEG over HTTP: auto {auto:.1f} images/s, exact {exact:.1f}, ratio within a round {ratio:.2f}"


def largest_lines(image: Image.Image) -> Iterator[str]:
    """Time and additional memory of all processes for one image of 108 megapixels."""
    small, large = enlarged(image, (1200, 900)), enlarged(image, LARGEST)
    with serve(Model(DEFAULT_VARIANT)) as (server, endpoint), httpx.Client(timeout=60) as client:
        seconds = 0.0
        for data in (small, large):
            before = {process: _kilobytes(process, "VmRSS") for process in _processes(server)}
            for process in before:
                Path(f"/proc/{process}/clear_refs").write_text("5")
            started = time.perf_counter()
            client.post(endpoint.url, content=data, headers={"Content-Type": "image/jpeg"}).raise_for_status()
            seconds = time.perf_counter() - started
        peak = sum(_kilobytes(process, "VmHWM") - kilobytes for process, kilobytes in before.items()) / 1024
    yield f"JPEG of 108 megapixels, {len(large) / 1e6:.0f} MB: {seconds:.2f} s, {peak:.0f} MiB more memory at the peak"


def _processes(server: Server) -> list[int]:
    """All processes of a server, which is a session of its own."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [number for number in numbers if _session(number) == server.process.pid]


def _session(process: int) -> int:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return 0


def _kilobytes(process: int, name: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with tar files of images")
    parser.add_argument("--large", type=int, default=LARGE, help="large photographs whose tokens are compared")
    arguments = parser.parse_args()
    require_h2load()
    images = list(islice(photographs(arguments.data), max(COLORS, arguments.large)))
    tokenizer = Model(DEFAULT_VARIANT).load()
    lines = (
        color_lines(tokenizer, images[:COLORS]),
        scale_lines(tokenizer, images[: arguments.large]),
        largest_lines(images[0]),
    )
    for line in chain.from_iterable(lines):
        print(line, flush=True)


if __name__ == "__main__":
    main()
