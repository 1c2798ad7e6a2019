import dataclasses
import math
from pathlib import Path

import pytest
import torch

from models.data.datasets import InMemoryDataset
from models.errors import CheckpointError, ConfigError
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.training.config import CodebookConfig, TokenizerRun
from models.training.loop import train
from models.training.pretrained import load_vqgan
from models.training.proxy import ProxyCodeTask
from models.training.seeding import seeded_generator
from models.training.task import Step


@pytest.fixture(scope="module")
def vqgan() -> MaskGITVQGAN:
    """A narrow network with the published codebook and downsampling."""
    torch.manual_seed(0)
    config = MaskGITVQGANConfig(
        image_size=32, hidden_channels=32, channel_multipliers=(1, 1, 1, 1, 1), residual_blocks=1, latent_channels=8
    )
    return MaskGITVQGAN(config).eval().requires_grad_(False)


@pytest.fixture
def run(tokenizer_run: TokenizerRun) -> TokenizerRun:
    network = dataclasses.replace(
        tokenizer_run.network,
        image_size=32,
        encoder_patch_size=16,
        decoder_patch_size=16,
        is_legacy=True,
        pixel_head="linear",
    )
    return dataclasses.replace(
        tokenizer_run,
        recipe="stage-1",
        network=network,
        codebook=CodebookConfig(quantizer_start=10, dead_after=5),
        schedule=dataclasses.replace(tokenizer_run.schedule, ema_decay=0.9),
    )


@pytest.fixture
def pictures() -> InMemoryDataset:
    random = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (24, 2, 2, 3), generator=random, dtype=torch.uint8)
    return InMemoryDataset(
        coarse.repeat_interleave(16, 1).repeat_interleave(16, 2).numpy(), torch.zeros(24, dtype=torch.int64).numpy()
    )


def test_the_loss_is_the_cross_entropy_of_the_vqgans_codes_and_the_quantizers(
    run: TokenizerRun, pictures: InMemoryDataset, vqgan: MaskGITVQGAN
) -> None:
    task = ProxyCodeTask(run, pictures, pictures, vqgan)
    losses = task.losses(Step(10, 0.0, seeded_generator(42, 10)))
    images = task.batch(Step(10, 0.0, seeded_generator(42, 10)))
    logits = task.network.decoder(task.network.quantize(task.network.latents(images))[0])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), vqgan.encode(images).ids.flatten())
    assert losses["proxy"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["proxy"].item() + losses["quantizer"].item(), rel=1e-6)


def test_it_learns_to_predict_them(
    run: TokenizerRun, pictures: InMemoryDataset, vqgan: MaskGITVQGAN, tmp_path: Path
) -> None:
    schedule = dataclasses.replace(run.schedule, steps=100, evaluate_every=100)
    task = ProxyCodeTask(dataclasses.replace(run, schedule=schedule), pictures, pictures, vqgan)
    figures = train(task, tmp_path)
    assert figures["proxy"] < 0.8 * math.log(1024)  # what knowing nothing costs
    assert figures["validation_proxy_accuracy"] > 0.03
    assert (tmp_path / "pictures" / "000100.png").exists()


def test_a_network_that_draws_pixels_is_refused(
    tokenizer_run: TokenizerRun, tiny_photographs: InMemoryDataset, vqgan: MaskGITVQGAN
) -> None:
    with pytest.raises(ConfigError, match=r"stage-1 needs network\.is_legacy = true"):
        ProxyCodeTask(tokenizer_run, tiny_photographs, tiny_photographs, vqgan)


def test_only_a_maskgit_vqgan_gives_proxy_codes() -> None:
    with pytest.raises(CheckpointError, match="titok-mini-32 is not a MaskGIT-VQGAN"):
        load_vqgan("titok-mini-32")
