from pathlib import Path

import pytest

from models import load_generator, load_tokenizer
from models.training.__main__ import main

TOKENIZER = """
[network]
image_size = 16
num_latent_tokens = 4
codebook_size = 64
token_size = 4
use_l2_norm = true
is_legacy = false
finetune_decoder = false
encoder_patch_size = 8
decoder_patch_size = 8
encoder = { width = 32, layers = 1, heads = 1 }
decoder = { width = 32, layers = 1, heads = 1 }
pixel_head = "conv"
pixel_head_channels = 8

[schedule]
steps = 12
batch_size = 8
warmup_steps = 5

[optimizer]
muon_lr = 3e-3
adamw_lr = 3e-3
precision = "bfloat16"

[training]
quantizer_start = 4
"""

GENERATOR = """
[network]
model_type = "UViT"
image_seq_len = 4
codebook_size = 64
condition_num_classes = 2
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64

[schedule]
steps = 12
batch_size = 8
warmup_steps = 5

[optimizer]
muon_lr = 3e-3
adamw_lr = 3e-3

[training]
tokenizer = "{tokenizer}"
classes = {{ "pets/cat" = "cat", "pets/dog" = "dog" }}
"""


@pytest.fixture
def folders(shards: Path) -> list[str]:
    (shards / "val-0000.tar.gz").write_bytes((shards / "train-0001.tar.gz").read_bytes())
    return ["--data", str(shards), "--cache", str(shards.parent / "cache")]


def test_a_tokenizer_and_then_its_generator_are_trained(folders: list[str], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.toml").write_text(TOKENIZER)
    main(["tokenizer", str(tmp_path / "tokenizer.toml"), *folders, "--output", str(tmp_path / "t")])
    tokenizer = load_tokenizer("mine", weights=tmp_path / "t" / "checkpoint")
    (tmp_path / "generator.toml").write_text(GENERATOR.format(tokenizer=tmp_path / "t" / "checkpoint"))
    main(["generator", str(tmp_path / "generator.toml"), *folders, "--output", str(tmp_path / "g")])
    generator = load_generator("titok-mini-32", weights=tmp_path / "g" / "checkpoint")
    assert generator.num_tokens == tokenizer.num_tokens
    assert tokenizer.decode(generator.generate([0, 1], seeds=[1, 2])).shape == (2, 16, 16, 3)


def test_a_config_key_that_does_not_exist_ends_the_command(folders: list[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(TOKENIZER.replace("steps = 12", "stepps = 12"))
    with pytest.raises(SystemExit, match=r"error: unknown key schedule\.stepps"):
        main(["tokenizer", str(tmp_path / "wrong.toml"), *folders, "--output", str(tmp_path / "t")])
    assert not (tmp_path / "t").exists()
