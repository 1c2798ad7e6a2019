"""Format of continuous latents: vectors of an image as raw bytes and as ``.npy`` files.

::

    latents float16 or float32 [B, K, C]  <->  little-endian numbers, row by row  <->  .npy

A VAE's encoder gives a Gaussian for each number: mean and logarithm of the variance, float32 [B, K, 2C]
(``models.codes.posterior`` makes latents of them).
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.arrays import Latents
from models.codes.code_format import CodeError
from models.codes.posterior import posterior_samples

DTYPES = ("float32", "float16")
_HEADER_BYTES = 512  # numpy writes 128; longer ones are only for records


@dataclass(frozen=True)
class LatentFormat:
    """The latents of an image: ``num_tokens`` vectors (K) of ``token_size`` numbers (C).

    ``is_posterior``: the encoder gives mean and log-variance (a VAE), not the vectors before quantization.
    """

    num_tokens: int
    token_size: int
    is_posterior: bool

    @property
    def shape(self) -> tuple[int, int]:
        """K and C."""
        return self.num_tokens, self.token_size

    @property
    def encoded_shape(self) -> tuple[int, int]:
        """Shape of the encoder's output for an image: [K, C], or [K, 2C] of a VAE."""
        return self.num_tokens, self.token_size * (2 if self.is_posterior else 1)

    def encoded(self, data: Sequence[bytes]) -> Latents:
        """Encoder outputs of images, float32 [B, *encoded_shape], from their bytes, which have that length."""
        return np.frombuffer(b"".join(data), "<f4").reshape(len(data), *self.encoded_shape)

    def has_length(self, data: bytes) -> bool:
        """Whether the bytes are as long as the encoder's output for an image."""
        return len(data) == 4 * math.prod(self.encoded_shape)

    def latents_of(self, encoded: Latents, seeds: Sequence[int] | None = None) -> Latents:
        """Encoder outputs float32 [B, *encoded_shape] -> latents float32 [B, K, C]: of a VAE the posterior's mean, or with
        ``seeds`` a sample for each image. Raises ``CodeError`` for seeds where there is no posterior.
        """
        if seeds is None:
            return encoded[..., : self.token_size]
        if not self.is_posterior:
            raise CodeError("only a VAE's latents can be sampled")
        return posterior_samples(encoded, seeds)

    def check(self, latents: NDArray[Any]) -> Latents:
        """Latents [K, C] or [B, K, C], float16 or float32, as float32 [B, K, C]. Raises ``CodeError`` for another shape or
        type, and for values that are not finite.
        """
        if latents.dtype.kind != "f" or latents.dtype.itemsize not in (2, 4):
            raise CodeError(f"latents are {' or '.join(DTYPES)}, not {latents.dtype}")
        if latents.shape[-2:] != self.shape or latents.ndim not in (2, 3) or not latents.size:
            raise CodeError(f"latents are {self._described}, not {list(latents.shape)}")
        if not np.isfinite(latents).all():
            raise CodeError("latents are finite numbers; there is an infinity or a NaN")
        return np.asarray(latents, np.float32).reshape(-1, *self.shape)

    def from_bytes(self, data: bytes, dtype: str) -> Latents:
        """Little-endian numbers of one of ``DTYPES`` -> latents float32 [B, K, C]. Raises ``CodeError``."""
        if dtype not in DTYPES:
            raise CodeError(f"latents are {' or '.join(DTYPES)}, not {dtype[:20]}")
        kind = np.dtype(dtype).newbyteorder("<")
        size = math.prod(self.shape) * kind.itemsize
        if not data or len(data) % size:
            raise CodeError(f"{dtype} latents come in whole groups of {size} bytes, not {len(data)} bytes")
        return self.check(np.frombuffer(data, kind).reshape(-1, *self.shape))

    def from_npy(self, data: bytes) -> Latents:
        """The ``.npy`` file of an array [K, C] or [B, K, C] -> latents float32 [B, K, C]. Raises ``CodeError``.

        Only numbers are read, never pickles, and no memory is allocated that the file does not fill.
        """
        file = io.BytesIO(data)
        try:
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, is_fortran, dtype = read[np.lib.format.read_magic(file)](file, max_header_size=_HEADER_BYTES)
        except Exception as error:  # the header is an expression in Python: whatever its parser raises
            raise CodeError("not a .npy file with a header of version 1 or 2") from error
        expected = math.prod(shape) * dtype.itemsize
        if is_fortran or dtype.hasobject or shape[-2:] != self.shape or len(data) - file.tell() != expected:
            order = ", in Fortran order," if is_fortran else ""
            raise CodeError(
                f"latents are {self._described} in C order; the file has {len(data) - file.tell()} bytes for "
                f"{dtype} {list(shape)}{order}"
            )
        return self.check(np.frombuffer(data, dtype, offset=file.tell()).reshape(shape))

    @property
    def _described(self) -> str:
        return f"[{self.num_tokens}, {self.token_size}] or [B, {self.num_tokens}, {self.token_size}]"


def to_dtype(latents: Latents, dtype: str) -> NDArray[Any]:
    """Latents in one of ``DTYPES``, little-endian. Values beyond those of float16 become its largest."""
    kind = np.dtype(dtype).newbyteorder("<")
    if dtype == "float16":
        latents = np.clip(latents, -65504.0, 65504.0)
    return latents.astype(kind, copy=False)


def to_npy(array: NDArray[Any]) -> bytes:
    """The ``.npy`` file of an array of numbers."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
