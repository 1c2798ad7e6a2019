"""Baselines of the same size: image placeholders, as web pages show them while an image loads.

::

    4x4 RGB grid   3 bytes a cell, Lanczos both ways
    ThumbHash      24 bytes of a square: luminance and two colour differences, low frequencies (package thash)
    BlurHash       base83 text of at most as many characters: cosines in linear light (package fast-blurhash)
    PCA            one byte for each coefficient, components fitted to photographs at 16x16
    WebP           the closest one that fits, of several sizes and qualities
    WebP, q 0      the whole image at quality 0, of any number of bytes
"""

import io
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.arrays import Ids, Pixels
from models.evaluation.features import as_tensor, batches
from models.evaluation.progress import Track, no_progress

LANCZOS = Image.Resampling.LANCZOS
PCA_SIZE = 16
# Coefficients are clipped at five standard deviations, so that one level of a byte is a 25th of a deviation.
_PCA_RANGE = 5.0
_MAX_COMPONENTS = 9  # of BlurHash, each way
_WEBP_BLOCK = 16  # pixels; up to this size a larger WebP can have fewer bytes than a smaller one


class Decoded(NamedTuple):
    """``images`` uint8 [B, S, S, 3] and their encoded sizes ``num_bytes`` int64 [B]."""

    images: Pixels
    num_bytes: Ids


class Codec:
    """Encodes images to bytes and decodes them, by default one by one. ``name`` is shown in tables; ``tokens`` is the number
    of tokens of an image, None for a codec without tokens.
    """

    name: str
    tokens: int | None = None

    def round_trip(self, image: Pixels) -> tuple[Pixels, int]:
        """Encodes and decodes one image uint8 [S, S, 3]; returns it with its number of bytes."""
        raise NotImplementedError

    def __call__(self, images: Pixels) -> Decoded:
        """Encodes and decodes images uint8 [B, S, S, 3]."""
        decoded, num_bytes = zip(*map(self.round_trip, images), strict=True)
        return Decoded(np.stack(decoded), np.array(num_bytes))


class Grid(Codec):
    """The image at n x n pixels, n as large as ``max_bytes`` allow at 3 bytes a pixel."""

    def __init__(self, max_bytes: int) -> None:
        self.side = math.isqrt(max_bytes // 3)
        if self.side < 1:
            raise ValueError(f"a grid needs at least 3 bytes, not {max_bytes}")
        self.name = f"{self.side}x{self.side} RGB"

    def round_trip(self, image: Pixels) -> tuple[Pixels, int]:
        """See the base class."""
        small = Image.fromarray(image).resize((self.side, self.side), LANCZOS)
        return np.asarray(small.resize(image.shape[1::-1], LANCZOS)), 3 * self.side**2


class ThumbHash(Codec):
    """ThumbHash (Evan Wallace, 2023), with the official decoder's saturation; its 32x32 are scaled to S by Lanczos."""

    name = "ThumbHash"

    def __init__(self) -> None:
        import thash

        self._thash = thash

    def round_trip(self, image: Pixels) -> tuple[Pixels, int]:
        """See the base class."""
        code = self._thash.encode(Image.fromarray(image))
        width, height, rgba = self._thash.thumb_hash_to_rgba(code)
        small = Image.frombytes("RGBA", (width, height), bytes(rgba)).convert("RGB")
        return np.asarray(small.resize(image.shape[1::-1], LANCZOS)), len(code)


class BlurHash(Codec):
    """BlurHash (Wolt, 2018), with as many components as ``max_bytes`` characters hold, in the closer orientation."""

    def __init__(self, max_bytes: int) -> None:
        import fast_blurhash

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
        self.name = f"BlurHash, {4 + 2 * math.prod(self.components)} bytes"

    def round_trip(self, image: Pixels) -> tuple[Pixels, int]:
        """See the base class."""
        wide, high = self.components
        height, width = image.shape[:2]
        decoded = []
        for across, down in {(wide, high), (high, wide)}:
            text = self._blurhash.encode(image.tobytes(), across, down, width, height)
            pixels = np.frombuffer(bytes(self._blurhash.decode(text, width, height)), np.uint8)
            decoded.append((pixels.reshape(image.shape), len(text)))
        return _closest(decoded, image)


class PrincipalComponents(Codec):
    """PCA of images at 16x16, one byte for each coefficient.

    ``mean`` [768], ``components`` [K, 768] with rows of unit length, ``deviations`` [K] of the coefficients.
    """

    def __init__(self, mean: Tensor, components: Tensor, deviations: Tensor) -> None:
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


class SmallWebP(Codec):
    """The closest WebP of at most ``max_bytes`` among several sizes and qualities, lossy or lossless."""

    _SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    _LOSSLESS_SIZES, _QUALITIES = (1, 2, 3), (0, 10, 20, 30, 50, 70)

    def __init__(self, max_bytes: int) -> None:
        self.name = f"WebP, {max_bytes} bytes"
        self.max_bytes = max_bytes
        if not self._fitting(np.zeros((1, 1, 3), np.uint8)):
            raise ValueError(f"no WebP has as few as {max_bytes} bytes")

    def round_trip(self, image: Pixels) -> tuple[Pixels, int]:
        """See the base class."""
        return _closest([(_decode_webp(file, len(image)), len(file)) for file in self._fitting(image)], image)

    def _fitting(self, image: Pixels) -> list[bytes]:
        whole = Image.fromarray(image)
        found = []
        for size in self._SIZES:
            small = whole.resize((size, size), LANCZOS)
            files = [_encode_webp(small, quality=quality) for quality in self._QUALITIES]
            files += [_encode_webp(small, quality=100, lossless=True)] if size in self._LOSSLESS_SIZES else []
            fitting = [file for file in files if len(file) <= self.max_bytes]
            found += fitting
            if size >= whole.width or (size > _WEBP_BLOCK and not fitting):
                break
        return found


class WebP(Codec):
    """The whole image as WebP of quality 0."""

    name = "WebP, quality 0"

    def round_trip(self, image: Pixels) -> tuple[Pixels, int]:
        """See the base class."""
        file = _encode_webp(Image.fromarray(image), quality=0)
        return _decode_webp(file, len(image)), len(file)


def placeholders(max_bytes: int) -> list[Codec]:
    """All baselines of at most ``max_bytes`` but PCA, which is fitted to images, and WebP of quality 0.

    Raises ``ModuleNotFoundError`` without the packages of ThumbHash and BlurHash.
    """
    found: list[Codec] = []
    for make in (Grid, BlurHash, SmallWebP):
        with suppress(ValueError):  # too few bytes for this one
            found.append(make(max_bytes))
    return [*found, ThumbHash(), WebP()]


def fit_principal_components(images: Pixels, count: int, *, track: Track = no_progress) -> PrincipalComponents:
    """Fits the ``count`` largest principal components (fewer if there are fewer) of uint8 [N, S, S, 3], in float64."""
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
    """Images [B, 3, S, S] -> [B, 768]."""
    return F.adaptive_avg_pool2d(images, PCA_SIZE).flatten(1)


def _closest(decoded: Iterable[tuple[Pixels, int]], image: Pixels) -> tuple[Pixels, int]:
    """The decoded image with the least squared error, and its number of bytes."""
    return min(decoded, key=lambda one: float(np.square(one[0].astype(np.float32) - image).mean()))


def _encode_webp(image: Image.Image, *, quality: int, lossless: bool = False) -> bytes:
    image.save(buffer := io.BytesIO(), "webp", lossless=lossless, quality=quality, method=6)
    return buffer.getvalue()


def _decode_webp(file: bytes, size: int) -> Pixels:
    with Image.open(io.BytesIO(file)) as image:
        rgb = image.convert("RGB")
    return np.asarray(rgb if rgb.width == size else rgb.resize((size, size), LANCZOS))
