"""The distance is the plain sum it is defined as, and gives gradients that training can use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from models.evaluation.features import as_tensor
from models.evaluation.lite0 import Lite0, perceptual_distance


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(radius))) for i in images])


@torch.inference_mode()
def test_it_is_the_sum_over_blocks_of_squared_differences_of_unit_features(lite0: Lite0, crops: np.ndarray) -> None:
    features, others = lite0.features(as_tensor(crops[:2])), lite0.features(as_tensor(crops[2:4]))
    expected = np.zeros(2)
    for block, other in zip(features, others, strict=True):
        for pair in range(2):
            x, y = (b[pair].double().numpy().reshape(b.shape[1], -1) for b in (block, other))
            gap = x / np.linalg.norm(x, axis=0) - y / np.linalg.norm(y, axis=0)
            expected[pair] += np.square(gap).sum(axis=0).mean()
    assert perceptual_distance(features, others).numpy() == pytest.approx(expected, rel=1e-5)


@torch.inference_mode()
def test_it_is_zero_for_copies_and_grows_with_blur(lite0: Lite0, crops: np.ndarray) -> None:
    original = lite0.features(as_tensor(crops))
    distances = [
        perceptual_distance(original, lite0.features(as_tensor(blurred(crops, radius)))).mean()
        for radius in (0.0, 1.0, 2.0, 4.0)
    ]
    assert distances[0] == 0
    assert sorted(distances) == distances
    assert distances[1] > 0.1


@torch.inference_mode()
def test_one_image_is_compared_with_each_of_a_batch(lite0: Lite0, crops: np.ndarray) -> None:
    features = lite0.features(as_tensor(crops[:4]))
    first = tuple(block[:1] for block in features)
    repeated = tuple(block.expand(4, -1, -1, -1) for block in first)
    assert perceptual_distance(first, features).tolist() == perceptual_distance(repeated, features).tolist()


def test_gradients_are_finite_where_features_are_zero() -> None:
    zeros = torch.zeros(1, 4, 2, 2, requires_grad=True)
    perceptual_distance([zeros], [torch.ones(1, 4, 2, 2)]).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_half_precision_features_are_compared_in_single(lite0: Lite0, crops: np.ndarray) -> None:
    with torch.inference_mode():
        features, others = lite0.features(as_tensor(crops[:1])), lite0.features(as_tensor(blurred(crops[:1], 2.0)))
        halves = [tuple(block.half() for block in blocks) for blocks in (features, others)]
        distance = perceptual_distance(*halves)
    assert distance.dtype is torch.float32
    assert distance.item() == pytest.approx(perceptual_distance(features, others).item(), rel=1e-3)
