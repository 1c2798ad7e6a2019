"""Reordering: which positions come first, and that nothing but their order changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import load_generator
from models.checkpoints.bundled import DEFAULT_VARIANT
from models.checkpoints.loading import Checkpoint
from models.data.datasets import InMemoryDataset
from models.errors import CheckpointError
from models.networks.generator import build_generator
from models.networks.titok import TiTok
from models.training.pretrained import load_frozen_tokenizer
from models.training.token_order import forward_selection, informative_order, reorder, reordered_generator
from tests.tiny_models import CODEBOOK_SIZE, NUM_TOKENS, tiny_generator, tiny_network


def test_positions_that_explain_more_of_what_is_left_come_first() -> None:
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(4000, 3, generator=generator)
    noise = torch.randn(4000, 1, generator=generator)
    # Group 3 repeats group 2, so that it explains nothing beyond it; group 0 is noise with a little of source 2.
    features = torch.stack([noise + 0.1 * sources[:, 2:], sources[:, 1:2], sources[:, :1], sources[:, :1]], dim=1)
    targets = sources * torch.tensor([3.0, 2.0, 1.0])
    order = forward_selection(features, targets)
    assert order in ([2, 1, 0, 3], [3, 1, 0, 2])


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], Path]:
    folder = tmp_path_factory.mktemp("reordered")
    for split, count in (("train", 40), ("val", 1)):
        images = folder / "images" / split / "all"
        images.mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.png")
    output = folder / "output"
    order = reorder(DEFAULT_VARIANT, DEFAULT_VARIANT, data=folder / "images", cache=folder / "cache", output=output)
    return order, output


def test_a_reordered_tokenizer_has_the_same_tokens_and_images(reordered: tuple[list[int], Path]) -> None:
    order, output = reordered
    assert sorted(order) == list(range(32))
    assert order != list(range(32))
    before = load_frozen_tokenizer(DEFAULT_VARIANT).network
    after = load_frozen_tokenizer(str(output / "tokenizer")).network
    images = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    ids = before.encode(images).ids
    assert torch.equal(after.encode(images).ids, ids[:, order])
    torch.testing.assert_close(after.decode(ids[:, order]), before.decode(ids))


@pytest.mark.parametrize("model_type", ["ViT", "UViT"])
def test_a_reordered_generator_predicts_the_same_tokens(model_type: Literal["ViT", "UViT"]) -> None:
    network = tiny_generator(model_type).network
    order = torch.randperm(NUM_TOKENS, generator=torch.Generator().manual_seed(0)).tolist()
    reordered = build_generator(network.config)
    reordered.load_state_dict(reordered_generator(checkpoint_of(network), order))
    tokens = torch.randint(0, CODEBOOK_SIZE + 1, (3, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, -1])
    with torch.inference_mode():
        logits = network(tokens, labels)[:, order]
        torch.testing.assert_close(reordered.eval()(tokens[:, order], labels), logits)


def test_a_reordered_generator_is_written_with_its_classes(reordered: tuple[list[int], Path]) -> None:
    _, output = reordered
    before = load_generator(DEFAULT_VARIANT)
    assert load_generator(DEFAULT_VARIANT, weights=output / "generator").class_names == before.class_names


def test_tokenizers_without_interchangeable_positions_and_other_generators_are_refused() -> None:
    no_images = InMemoryDataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64))
    for network in (tiny_network("vae"), TiTok(dataclasses.replace(tiny_network().config, is_legacy=True))):
        with pytest.raises(CheckpointError, match="one-stage tokenizers with codes"):
            informative_order(network, no_images)
    with pytest.raises(CheckpointError, match="not a generator of 15 tokens"):
        reordered_generator(checkpoint_of(tiny_generator().network), list(range(15)))


def checkpoint_of(network: nn.Module) -> Checkpoint:
    return Checkpoint(tensors=network.state_dict(), config=None, source="test")
