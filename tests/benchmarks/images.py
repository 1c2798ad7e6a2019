"""Deterministic sets of distinct images of many kinds, for comparisons of ids."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["distinct_images"]

Pixels = npt.NDArray[np.uint8]
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.floating]]

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def distinct_images(count: int, size: int, *, seed: int = 0) -> Pixels:
    """Crops of photographs, some turned or dimmed, and drawn ones: uint8 [count, size, size, 3].

    Every second image is a crop, if scikit-image with its photographs is installed; else all of them are drawn.
    """
    random, photographs = np.random.default_rng(seed), _photographs()
    images: list[Pixels] = []
    seen: set[bytes] = set()
    while len(images) < count:
        place = len(images)
        if photographs and place % 2 == 0:
            image = _crop(random, photographs[place // 2 % len(photographs)], size)
        else:
            image = DRAWINGS[place // 2 % len(DRAWINGS)](random, size)
        pixels = np.clip(image, 0, 255).round().astype(np.uint8)
        if pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            images.append(pixels)
    return np.stack(images)


def _photographs() -> list[Pixels]:
    try:
        data = importlib.import_module("skimage.data")
    except ModuleNotFoundError:
        return []
    return [getattr(data, name)() for name in PHOTOGRAPHS]


def _crop(random: np.random.Generator, photograph: Pixels, size: int) -> npt.NDArray[np.floating]:
    from PIL import Image

    height, width = photograph.shape[:2]
    side = int(random.integers(96, min(height, width) + 1))
    top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
    piece = Image.fromarray(photograph[top : top + side, left : left + side]).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.rot90(np.asarray(piece, np.float64), int(random.integers(4)))
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels * random.uniform(0.5, 1.2) if random.random() < 0.3 else pixels


def _grid(size: int) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    y, x = np.mgrid[0:size, 0:size] / size
    return x[..., None], y[..., None]


def _noise(random: np.random.Generator, size: int) -> npt.NDArray[np.floating]:
    """Noise in blocks of a random size, about a random colour."""
    block = int(random.choice([1, 2, 4, 8, 16]))
    cells = random.normal(random.uniform(60, 200, 3), random.uniform(10, 80), (size // block, size // block, 3))
    return np.kron(cells, np.ones((block, block, 1)))


def _gradient(random: np.random.Generator, size: int) -> npt.NDArray[np.floating]:
    """From one colour to another, in a random direction."""
    x, y = _grid(size)
    angle = random.uniform(0, 2 * np.pi)
    way = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) + 0.5
    first, last = random.uniform(0, 255, (2, 3))
    return first + way * (last - first)


def _stripes(random: np.random.Generator, size: int) -> npt.NDArray[np.floating]:
    """Waves of two colours in a random direction and width."""
    x, y = _grid(size)
    angle, waves = random.uniform(0, np.pi), random.uniform(1, 24)
    way = 0.5 + 0.5 * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y))
    first, last = random.uniform(0, 255, (2, 3))
    return first + way * (last - first)


def _flat(random: np.random.Generator, size: int) -> npt.NDArray[np.floating]:
    """One colour, and hardly any noise: where every code is as good as the next."""
    return random.uniform(0, 255, 3) + random.normal(0, random.uniform(0, 2), (size, size, 3))


def _discs(random: np.random.Generator, size: int) -> npt.NDArray[np.floating]:
    """A few discs on a ground of another colour."""
    x, y = _grid(size)
    image = np.broadcast_to(random.uniform(0, 255, 3), (size, size, 3)).copy()
    for _ in range(int(random.integers(2, 9))):
        centre, radius = random.uniform(0, 1, 2), random.uniform(0.05, 0.3)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        image = np.where(inside, random.uniform(0, 255, 3), image)
    return image


DRAWINGS: tuple[Draw, ...] = (_noise, _gradient, _stripes, _flat, _discs)
