"""Runs that take a second."""

import pytest

from models.networks.titok import TiTokConfig, TransformerSize
from models.training.config import CodebookConfig, DataConfig, LossConfig, OptimizerConfig, ScheduleConfig, TokenizerRun


@pytest.fixture(scope="session")
def tokenizer_run() -> TokenizerRun:
    size = TransformerSize(width=32, layers=1, heads=1)
    return TokenizerRun(
        network=TiTokConfig(
            image_size=16,
            num_latent_tokens=4,
            encoder=size,
            decoder=size,
            encoder_patch_size=8,
            decoder_patch_size=8,
            codebook_size=64,
            token_size=4,
            use_l2_norm=True,
            is_legacy=False,
            finetune_decoder=False,
            pixel_head="conv",
            pixel_head_channels=8,
        ),
        schedule=ScheduleConfig(steps=30, batch_size=8, warmup_steps=5, evaluate_every=10),
        optimizer=OptimizerConfig(muon_lr=3e-3, adamw_lr=3e-3, precision="float32"),
        losses=LossConfig(l1_weight=0.1),
        codebook=CodebookConfig(quantizer_start=6, dead_after=5),
        data=DataConfig(max_shift=2, validation_images=16),
    )
