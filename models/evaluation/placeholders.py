"""What the same number of bytes buys elsewhere: image placeholders, as web pages show them while a picture loads.

::

    4x4 RGB grid   3 bytes a cell, Lanczos both ways
    ThumbHash      24 bytes of a square: luminance and two colour differences, low frequencies (package thash)
    BlurHash       base83 text of at most so many characters: cosines in linear light (package fast-blurhash)
    PCA            one byte for each coefficient, components fitted to photographs at 16x16
    WebP           the closest one that fits, of several sizes and qualities
    WebP, q 0      the smallest of the whole image, however many bytes that takes
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.errors import missing_package
from models.evaluation.features import as_tensor, batches
from models.evaluation.progress import Track, no_progress

__all__ = [
    "BlurHash",
    "Codec",
    "Decoded",
    "Grid",
    "PlaceholdersMissing",
    "PrincipalComponents",
    "SmallWebP",
    "ThumbHash",
    "WebP",
    "fit_principal_components",
    "placeholders",
]

Pixels = NDArray[np.uint8]

LANCZOS = Image.Resampling.LANCZOS
PCA_SIZE = 16
# Coefficients are clipped at five of their deviations: bytes are then a 25th of a deviation apart.
_PCA_RANGE = 5.0
_MAX_COMPONENTS = 9  # of BlurHash, each way
_WEBP_BLOCK = 16  # pixels; up to there a larger WebP may have fewer bytes than a smaller one


class PlaceholdersMissing(Exception):
    """A package of the baselines is not installed; the message says which extra brings it."""


class Decoded(NamedTuple):
    """``images`` uint8 [B, S, S, 3] and how many bytes each took, ``num_bytes`` int64 [B]."""

    images: Pixels
    num_bytes: NDArray[np.int64]


class Codec(Protocol):
    """Something that turns images into bytes and back. ``name`` is what tables call it."""

    name: str

    def __call__(self, images: Pixels) -> Decoded:
        """Uint8 [B, S, S, 3] after a journey through as few bytes as there are."""


class Grid:
    """The image at n x n pixels, n as large as ``max_bytes`` allow at 3 bytes a pixel."""

    def __init__(self, max_bytes: int) -> None:
        self.side = math.isqrt(max_bytes // 3)
        if self.side < 1:
            raise ValueError(f"a grid needs at least 3 bytes, not {max_bytes}")
        self.name = f"{self.side}x{self.side} RGB"

    def __call__(self, images: Pixels) -> Decoded:
        """See :class:`Codec`."""
        size = images.shape[1]
        decoded = [
            np.asarray(Image.fromarray(image).resize((self.side, self.side), LANCZOS).resize((size, size), LANCZOS))
            for image in images
        ]
        return Decoded(np.stack(decoded), np.full(len(images), 3 * self.side**2))


class ThumbHash:
    """ThumbHash (Evan Wallace, 2023), with the official decoder's saturation; its 32x32 are brought to S by Lanczos."""

    name = "ThumbHash"

    def __init__(self) -> None:
        try:
            import thash
        except ImportError as error:
            raise _missing(error) from error
        self._thash = thash

    def __call__(self, images: Pixels) -> Decoded:
        """See :class:`Codec`."""
        decoded, num_bytes = [], []
        for image in images:
            code = self._thash.encode(Image.fromarray(image))
            width, height, rgba = self._thash.thumb_hash_to_rgba(code)
            small = Image.frombytes("RGBA", (width, height), bytes(rgba)).convert("RGB")
            decoded.append(np.asarray(small.resize((image.shape[1], image.shape[0]), LANCZOS)))
            num_bytes.append(len(code))
        return Decoded(np.stack(decoded), np.array(num_bytes))


class BlurHash:
    """BlurHash (Wolt, 2018): as many components as ``max_bytes`` characters hold, more across or more down."""

    name = "BlurHash"

    def __init__(self, max_bytes: int) -> None:
        try:
            import fast_blurhash
        except ImportError as error:
            raise _missing(error) from error
        self._blurhash = fast_blurhash
        fitting = [
            (wide, high)
            for high in range(1, _MAX_COMPONENTS + 1)
            for wide in (high, high + 1)
            if wide <= _MAX_COMPONENTS and 4 + 2 * wide * high <= max_bytes
        ]
        if not fitting:
            raise ValueError(f"a BlurHash has at least 6 characters, not {max_bytes}")
        self.components = fitting[-1]

    def __call__(self, images: Pixels) -> Decoded:
        """See :class:`Codec`. Of both ways to lay the components the closer one counts."""
        wide, high = self.components
        best = [_closest([self._one(image, *c) for c in {(wide, high), (high, wide)}], image) for image in images]
        return Decoded(np.stack([image for image, _ in best]), np.array([num_bytes for _, num_bytes in best]))

    def _one(self, image: Pixels, across: int, down: int) -> tuple[Pixels, int]:
        height, width = image.shape[:2]
        text = self._blurhash.encode(image.tobytes(), across, down, width, height)
        decoded = bytes(self._blurhash.decode(text, width, height))
        return np.frombuffer(decoded, np.uint8).reshape(image.shape), len(text)


class PrincipalComponents:
    """The ``max_bytes`` strongest components of photographs at 16x16, a byte for each coefficient."""

    def __init__(self, mean: Tensor, components: Tensor, deviations: Tensor) -> None:
        """``mean`` [768], ``components`` [K, 768] with rows of unit length, ``deviations`` [K] of the coefficients."""
        self.name = f"PCA, {len(components)} components"
        self._mean, self._components = mean, components
        self._step = deviations * _PCA_RANGE / 127

    def __call__(self, images: Pixels) -> Decoded:
        """See :class:`Codec`."""
        small = _at_pca_size(as_tensor(images)) - self._mean
        codes = (small @ self._components.T / self._step).round().clamp(-127, 127)  # a byte each
        small = (codes * self._step) @ self._components + self._mean
        size = images.shape[1:3]
        large = F.interpolate(small.view(-1, 3, PCA_SIZE, PCA_SIZE), size, mode="bicubic", align_corners=False)
        pixels = large.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return Decoded(pixels, np.full(len(images), len(self._components)))


class SmallWebP:
    """The closest WebP of at most ``max_bytes`` among several sizes and qualities, lossy or lossless."""

    _SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    _LOSSLESS_SIZES, _QUALITIES = (1, 2, 3), (0, 10, 20, 30, 50, 70)

    def __init__(self, max_bytes: int) -> None:
        self.name = f"WebP, {max_bytes} bytes"
        self.max_bytes = max_bytes
        if not self._fitting(np.zeros((1, 1, 3), np.uint8)):
            raise ValueError(f"no WebP has as few as {max_bytes} bytes")

    def __call__(self, images: Pixels) -> Decoded:
        """See :class:`Codec`."""
        best = [_closest([(_unwebp(f, len(image)), len(f)) for f in self._fitting(image)], image) for image in images]
        return Decoded(np.stack([image for image, _ in best]), np.array([num_bytes for _, num_bytes in best]))

    def _fitting(self, image: Pixels) -> list[bytes]:
        whole = Image.fromarray(image)
        found = []
        for size in self._SIZES:
            small = whole.resize((size, size), LANCZOS)
            files = [_webp(small, lossless=True, quality=100)] if size in self._LOSSLESS_SIZES else []
            files += [_webp(small, lossless=False, quality=quality) for quality in self._QUALITIES]
            fitting = [file for file in files if len(file) <= self.max_bytes]
            found += fitting
            if size >= whole.width or (size > _WEBP_BLOCK and not fitting):
                break
        return found


class WebP:
    """The whole image as WebP of quality 0."""

    name = "WebP, quality 0"

    def __call__(self, images: Pixels) -> Decoded:
        """See :class:`Codec`."""
        files = [_webp(Image.fromarray(image), lossless=False, quality=0) for image in images]
        decoded = [_unwebp(file, len(image)) for file, image in zip(files, images, strict=True)]
        return Decoded(np.stack(decoded), np.array([len(file) for file in files]))


def placeholders(max_bytes: int) -> list[Codec]:
    """Every baseline that can do with ``max_bytes`` and needs no fitting, and the smallest WebP.

    Raises :class:`PlaceholdersMissing`.
    """
    found: list[Codec] = []
    for make in (Grid, BlurHash, SmallWebP):
        try:
            found.append(make(max_bytes))
        except ValueError:  # too few bytes for this one
            continue
    return [*found, ThumbHash(), WebP()]


def fit_principal_components(images: Pixels, count: int, *, track: Track = no_progress) -> PrincipalComponents:
    """The ``count`` strongest components of uint8 [N, S, S, 3], as many as there are at most; float64, exact."""
    dimensions = 3 * PCA_SIZE**2
    sums, products = torch.zeros(dimensions, dtype=torch.float64), torch.zeros(dimensions, dimensions).double()
    for part in track(batches(len(images)), "fitting principal components"):
        small = _at_pca_size(as_tensor(images[part])).double()
        sums += small.sum(0)
        products += small.T @ small
    mean = sums / len(images)
    variances, vectors = torch.linalg.eigh(products / len(images) - torch.outer(mean, mean))
    count = min(count, len(images), dimensions)
    deviations = variances.flip(0)[:count].clamp(min=1e-12).sqrt()
    return PrincipalComponents(mean.float(), vectors.flip(1)[:, :count].T.contiguous().float(), deviations.float())


def _at_pca_size(images: Tensor) -> Tensor:
    """[B, 3, S, S] -> [B, 768]."""
    return F.adaptive_avg_pool2d(images, PCA_SIZE).flatten(1)


def _closest(decoded: Iterable[tuple[Pixels, int]], image: Pixels) -> tuple[Pixels, int]:
    """The one with the least squared error, and its bytes."""
    return min(decoded, key=lambda one: float(np.square(one[0].astype(np.float32) - image).mean()))


def _webp(image: Image.Image, *, lossless: bool, quality: int) -> bytes:
    image.save(buffer := io.BytesIO(), "webp", lossless=lossless, quality=quality, method=6)
    return buffer.getvalue()


def _unwebp(file: bytes, size: int) -> Pixels:
    with Image.open(io.BytesIO(file)) as image:
        rgb = image.convert("RGB")
    return np.asarray(rgb if rgb.width == size else rgb.resize((size, size), LANCZOS))


def _missing(error: ImportError) -> PlaceholdersMissing:
    return PlaceholdersMissing(missing_package(error, "evaluate"))
