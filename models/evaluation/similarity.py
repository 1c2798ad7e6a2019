"""PSNR and SSIM of image batches, for tensors and NumPy arrays, so that processes without torch can use them."""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Pictures = TypeVar("Pictures", "Tensor", "npt.NDArray[np.floating]")

_RADIUS, _SIGMA = 5, 1.5
_WINDOW = np.exp(-(np.arange(_RADIUS + 1) ** 2) / (2 * _SIGMA**2))  # the centre and one side
_WINDOW = _WINDOW / (_WINDOW[0] + 2 * _WINDOW[1:].sum())


def psnr(outputs: Pictures, images: Pictures) -> Pictures:
    """Peak signal-to-noise ratio of each image, dB, [B]; both [B, 3, S, S], peak 1; infinite for equal ones.

    ``outputs`` are clipped to [0, 1]. The result has the dtype of the images.
    """
    error: Pictures = ((outputs.clip(0, 1) - images) ** 2).reshape(len(images), -1).mean(1)
    if isinstance(error, np.ndarray):
        with np.errstate(divide="ignore"):
            decibels: Pictures = -10.0 * np.log10(error)
        return decibels
    return -10.0 * error.log10()


def ssim(outputs: Pictures, images: Pictures) -> Pictures:
    """Structural similarity of each image, in [-1, 1], [B]; both [B, 3, S, S], peak 1, S at least 11.

    The mean over pixels and channels. Gaussian window of 11 pixels, sigma 1.5, k1 0.01, k2 0.03, as Wang et al. (IEEE
    TIP 13(4), 2004) define it; only pixels whose whole window lies in the image count.
    """
    x, y = outputs.clip(0, 1), images
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    mean: Pictures = similarity.reshape(len(images), -1).mean(1)
    return mean


def _blurred(planes: Pictures) -> Pictures:
    """[..., H, W] -> [..., H - 10, W - 10]."""
    height, width = planes.shape[-2] - 2 * _RADIUS, planes.shape[-1] - 2 * _RADIUS
    rows = planes[..., _RADIUS : _RADIUS + height, :] * float(_WINDOW[0])
    for far, weight in enumerate(_WINDOW[1:].tolist(), 1):
        above, below = _RADIUS - far, _RADIUS + far
        rows += (planes[..., above : above + height, :] + planes[..., below : below + height, :]) * weight
    found = rows[..., _RADIUS : _RADIUS + width] * float(_WINDOW[0])
    for far, weight in enumerate(_WINDOW[1:].tolist(), 1):
        left, right = _RADIUS - far, _RADIUS + far
        found += (rows[..., left : left + width] + rows[..., right : right + width]) * weight
    return found
