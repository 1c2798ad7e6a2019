"""PSNR and SSIM of a reconstruction."""

from __future__ import annotations

import math

import numpy as np

from models.arrays import Pixels
from models.evaluation.similarity import psnr, ssim


def measure_quality(image: Pixels, original: Pixels) -> tuple[float | None, float]:
    """PSNR in dB (None: no difference) and SSIM of images uint8 [S, S, 3], rounded to two and four decimals."""
    outputs, images = ((pixels.astype(np.float32) / 255.0).transpose(2, 0, 1)[None] for pixels in (image, original))
    decibels = float(psnr(outputs, images)[0])
    return None if math.isinf(decibels) else round(decibels, 2), round(float(ssim(outputs, images)[0]), 4)
