import dataclasses

import pytest
import torch

from models.errors import CheckpointError
from models.networks.titok import TiTok
from models.training.config import TokenizerRun
from models.training.initialisation import initialise_tokenizer, load_into_larger


def test_a_published_start_is_narrow_and_keeps_single_vectors(tokenizer_run: TokenizerRun) -> None:
    torch.manual_seed(0)
    network = TiTok(tokenizer_run.network)
    initialise_tokenizer(network, "published")
    weights = network.encoder.transformer[0].mlp.c_fc.weight  # type: ignore[union-attr]
    assert weights.std().item() == pytest.approx(0.02 * 0.88, rel=0.1)  # cut at two deviations
    assert weights.abs().max().item() <= 0.04 + 1e-6
    assert network.latent_tokens.std().item() == pytest.approx(32**-0.5, rel=0.3)
    assert network.quantize.embedding.weight.abs().max().item() <= 1 / 64
    assert all(not parameter.any() for name, parameter in network.named_parameters() if name.endswith("c_fc.bias"))


def test_fan_in_initialization_keeps_the_variance(tokenizer_run: TokenizerRun) -> None:
    torch.manual_seed(0)
    network = TiTok(tokenizer_run.network)
    initialise_tokenizer(network, "fan-in")
    out = network.encoder.transformer[0].mlp.c_fc(torch.randn(1000, 32))  # type: ignore[union-attr]
    assert out.std().item() == pytest.approx(1.0, rel=0.1)


@torch.no_grad()
def test_a_deepened_network_starts_with_the_same_outputs(tokenizer_run: TokenizerRun) -> None:
    torch.manual_seed(0)
    shallow = TiTok(tokenizer_run.network)
    initialise_tokenizer(shallow, "fan-in")
    shape = dataclasses.replace(tokenizer_run.network.encoder, layers=3)
    deep = TiTok(dataclasses.replace(tokenizer_run.network, encoder=shape, decoder=shape))
    initialise_tokenizer(deep, "fan-in")
    new = load_into_larger(deep, shallow.state_dict(), "shallow")
    assert {name.split(".transformer.")[1].split(".")[0] for name in new} == {"1", "2"}
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(deep.latents(images), shallow.latents(images))
    ids = shallow.encode(images).ids
    assert torch.equal(deep.decode(ids), shallow.decode(ids))


def test_weights_of_another_network_are_refused_by_name(tokenizer_run: TokenizerRun) -> None:
    network = TiTok(tokenizer_run.network)
    wider = TiTok(dataclasses.replace(tokenizer_run.network, pixel_head_channels=16))
    with pytest.raises(CheckpointError, match=r"wider has decoder\.head\.embed\.weight \[64, 32\]"):
        load_into_larger(network, wider.state_dict(), "wider")
    linear = TiTok(dataclasses.replace(tokenizer_run.network, pixel_head="linear"))
    with pytest.raises(CheckpointError, match=r"linear has decoder\.ffn\.0\.weight, which the network to be trained"):
        load_into_larger(network, linear.state_dict(), "linear")
