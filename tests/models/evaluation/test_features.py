"""Features of one pass are the network's own, at any size, and are computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.evaluation import features
from models.evaluation.features import as_tensor, cached_embeddings, extract_features
from models.evaluation.lite0 import Lite0


@torch.inference_mode()
def test_one_pass_gives_what_two_passes_of_the_network_give(lite0: Lite0, crops: np.ndarray) -> None:
    images = as_tensor(crops)
    found = extract_features(lite0, images)
    torch.testing.assert_close(found.pooled, lite0.embed(images))
    for ours, theirs in zip(found.blocks, lite0.features(images), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("size", "taken"), [(16, 32), (40, 32), (50, 64), (64, 64)])
def test_images_are_taken_at_the_nearest_size_the_network_has(lite0: Lite0, size: int, taken: int) -> None:
    blocks, pooled = extract_features(lite0, torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    assert blocks[-1].shape[-1] == taken // 32
    assert pooled.shape == (1, 1280)


def test_features_are_read_again_and_not_computed(
    lite0: Lite0, crops: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_embeddings(lite0, crops, cache=tmp_path, description="")
    monkeypatch.setattr(features, "_embed", None)
    assert torch.equal(cached_embeddings(lite0, crops, cache=tmp_path, description=""), first)
    with torch.inference_mode():
        torch.testing.assert_close(first.float(), lite0.embed(as_tensor(crops)), rtol=1e-3, atol=1e-3)


def test_other_images_or_another_network_have_features_of_their_own(
    lite0: Lite0, crops: np.ndarray, tmp_path: Path
) -> None:
    first = cached_embeddings(lite0, crops, cache=tmp_path, description="")
    changed = crops.copy()
    changed[3, 10, 10] ^= 255
    assert not torch.equal(cached_embeddings(lite0, changed, cache=tmp_path, description=""), first)
    torch.manual_seed(0)
    assert not torch.equal(cached_embeddings(Lite0().eval(), crops, cache=tmp_path, description=""), first)
    assert len(list(tmp_path.iterdir())) == 3
