"""In which number format the networks run, and what the processor at hand is good at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["DTYPES", "Precision", "has_fast_bfloat16"]

DTYPES = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class Precision:
    """``encoder`` decides token ids, ``decoder`` pixels, ``generator`` the tokens of new images."""

    encoder: torch.dtype
    decoder: torch.dtype
    generator: torch.dtype

    @classmethod
    def of(cls, name: str, device: torch.device) -> Precision:
        """The formats that a ``dtype`` setting stands for.

        ``auto`` lowers the decoder alone, and only where that is faster: it moves pixels by a level or two, while a
        lower encoder or generator would choose other tokens. ``bfloat16`` lowers all three and is taken at its word.
        """
        if name == "float32":
            return cls(torch.float32, torch.float32, torch.float32)
        if name == "bfloat16":
            return cls(torch.bfloat16, torch.bfloat16, torch.bfloat16)
        if name == "auto":
            decoder = torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
            return cls(torch.float32, decoder, torch.float32)
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products have hardware behind them; emulated they are 10 to 100 times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
