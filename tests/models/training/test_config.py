from pathlib import Path

import pytest

from models.training.config import ConfigError, GeneratorRun, TokenizerRun, read_config

CONFIGS = Path(__file__).parents[3] / "models" / "training" / "configs"


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (CONFIGS / "titok-mini-32.toml").read_text()
    assert old in text
    path = tmp_path / "run.toml"
    path.write_text(text.replace(old, new))
    return path


def test_the_projects_own_configs_are_valid() -> None:
    tokenizer = read_config(CONFIGS / "titok-mini-32.toml", TokenizerRun)
    generator = read_config(CONFIGS / "titok-mini-32-generator.toml", GeneratorRun)
    assert tokenizer.network.num_latent_tokens == generator.network.image_seq_len
    assert tokenizer.network.codebook_size == generator.network.codebook_size
    names = list(generator.training.classes.values())
    assert len(set(names)) == len(names) == generator.network.condition_num_classes == 43
    assert all(name == name.lower() for name in names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("warmup_steps", "warm_up_steps", "unknown key schedule.warm_up_steps; known here: batch_size"),
        ("width = 192, layers = 4", "widht = 192, layers = 4", "unknown key network.encoder.widht"),
        ("muon_lr = 6e-3", "", "missing key optimizer.muon_lr"),
        ("batch_size = 64", 'batch_size = "64"', "schedule.batch_size must be int, not '64'"),
        ('precision = "bfloat16"', 'precision = "fp8"', "optimizer.precision must be one of 'float32', 'bfloat16'"),
        ("adamw_betas = [0.9, 0.98]", "adamw_betas = [0.9]", "optimizer.adamw_betas must be"),
        ("image_size = 128", "image_size = 120", "network: image_size 120 is not a multiple"),
        ("[schedule]", "[schedule", "run.toml: "),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r".*") as caught:
        read_config(changed(tmp_path, old, new), TokenizerRun)
    assert message in str(caught.value)
