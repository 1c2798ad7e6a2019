"""Number formats of encoder, decoder and generator, and which of them the processor supports."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.runtime.matmul_precision import MatmulMode, MatmulPrecision, has_tf32


@dataclass(frozen=True)
class NumberFormat:
    """``dtype`` of weights and activations, ``matmul`` precision of float32 products, and the revision ``suffix``.

    Formats whose token ids may differ from float32's have a suffix of their own.
    """

    name: str
    dtype: torch.dtype
    matmul: MatmulMode
    suffix: str

    @property
    def is_exact(self) -> bool:
        """Whether results are those of float32."""
        return self.name == "float32"

    @property
    def is_batch_invariant(self) -> bool:
        """Whether ids are made batch-invariant: errors are so small that few decisions must be repeated unbatched."""
        return self.matmul != "tf32" and self.dtype is torch.float32

    def on(self, device: torch.device) -> MatmulPrecision:
        """The context manager in which a network of this format runs."""
        return MatmulPrecision(self.matmul, device)


FORMATS = {
    kind.name: kind
    for kind in (
        NumberFormat("float32", torch.float32, "float32", ""),
        NumberFormat("tf32", torch.float32, "tf32", "-tf32"),
        NumberFormat("tf32x3", torch.float32, "tf32x3", "-tf32x3"),
        NumberFormat("float16", torch.float16, "float32", "-fp16"),
        NumberFormat("bfloat16", torch.bfloat16, "float32", "-bf16"),
    )
}
DTYPES = ("auto", *FORMATS)


@dataclass(frozen=True)
class Precision:
    """Formats of the ``encoder`` (decides token ids), the ``decoder`` (pixels) and the ``generator`` (generated ids)."""

    encoder: NumberFormat
    decoder: NumberFormat
    generator: NumberFormat

    @classmethod
    def of(cls, name: str, device: torch.device) -> Precision:
        """The formats of a ``dtype`` setting.

        ``auto`` lowers only the decoder, and only where that is faster: pixels change by a level or two, while a lower
        encoder or generator would choose other ids. Any other name is the format of all three. Raises ``ValueError``
        for an unknown name, and for TF32 on a device without it.
        """
        if name == "auto":
            decoder = FORMATS["bfloat16" if has_fast_bfloat16(device) else "float32"]
            return cls(FORMATS["float32"], decoder, FORMATS["float32"])
        if name not in FORMATS:
            raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
        if name.startswith("tf32") and not has_tf32(device):
            raise ValueError(f"dtype {name!r} needs a CUDA device of compute capability 8.0 or later, not {device}")
        return cls(FORMATS[name], FORMATS[name], FORMATS[name])


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes bfloat16 products; emulation is 10 to 100 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
