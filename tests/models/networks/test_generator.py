"""Dropout of the generators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.networks.attention import attend
from models.networks.generator import GeneratorConfig, build_generator


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_zeroes_weights_of_the_attention_and_scales_the_others(*, fused: bool) -> None:
    torch.manual_seed(0)
    equal, ones = torch.zeros(1, 500, 2), torch.ones(1, 500, 2)
    kept = attend(equal, equal, ones, 1, fused=fused, dropout=0.4)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.01)
    assert 0.02 < kept.std().item() < 0.06  # of a sum of 500 weights, sqrt(0.4 / 0.6 / 500)
    assert torch.allclose(attend(equal, equal, ones, 1, fused=fused), ones)


def test_attention_of_the_vit_has_dropout_in_training_only() -> None:
    config = GeneratorConfig(
        model_type="ViT", image_seq_len=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, dropout=0.5
    )
    network = build_generator(config)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tokens, labels = torch.arange(8)[None], torch.tensor([1])
    assert not torch.equal(network(tokens, labels), network(tokens, labels))
    network.eval()
    assert torch.equal(network(tokens, labels), network(tokens, labels))
