"""In which number format the networks run, and what the processor at hand is good at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.runtime.matmul_precision import MatmulMode, MatmulPrecision, has_tf32

__all__ = ["DTYPES", "FORMATS", "NumberFormat", "Precision", "has_fast_bfloat16"]


@dataclass(frozen=True)
class NumberFormat:
    """``dtype`` of the matrices and what they are multiplied with, ``products`` of float32 ones, and the ``suffix`` that
    tells a revision apart whose ids may differ from float32's.
    """

    name: str
    dtype: torch.dtype
    products: MatmulMode
    suffix: str

    @property
    def is_exact(self) -> bool:
        """Whether results are float32's."""
        return self.name == "float32"

    @property
    def rounds_like_float32(self) -> bool:
        """Whether it comes so near to float32 that few decisions are too close to tell which way float32 would go."""
        return self.products != "tf32" and self.dtype is torch.float32

    def on(self, device: torch.device) -> MatmulPrecision:
        """The context in which a network of this format computes."""
        return MatmulPrecision(self.products, device)


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
    """``encoder`` decides token ids, ``decoder`` pixels, ``generator`` the tokens of new images."""

    encoder: NumberFormat
    decoder: NumberFormat
    generator: NumberFormat

    @classmethod
    def of(cls, name: str, device: torch.device) -> Precision:
        """The formats that a ``dtype`` setting stands for.

        ``auto`` lowers the decoder alone, and only where that is faster: it moves pixels by a level or two, while a
        lower encoder or generator would choose other tokens. Any other name is that of one format for all three, taken
        at its word. Raises ``ValueError`` for another name, and for TF32 on a device that has none.
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
    """Whether bfloat16 products have hardware behind them; emulated they are 10 to 100 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
