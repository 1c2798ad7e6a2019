import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from models.checkpoints.bundled import BUNDLED_WEIGHTS
from models.checkpoints.configuration import config_document, tokenizer_config
from models.checkpoints.registry import GENERATORS, TOKENIZERS
from models.errors import ConfigError
from models.networks.titok import TiTok, TiTokConfig
from models.training.config import GeneratorRun, TokenizerRun, read_config
from models.training.run import find_config

CONFIGS = Path(__file__).parents[3] / "models" / "training" / "configs"


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = (CONFIGS / "titok-mini-32.toml").read_text()
    assert old in text
    path = tmp_path / "run.toml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_of_the_projects_own_is_valid(path: Path) -> None:
    if path.stem.endswith("generator"):
        assert read_config(path, GeneratorRun).schedule.steps
        return
    run = read_config(path, TokenizerRun)
    with torch.device("meta"):
        TiTok(run.network)
    name = re.sub("-(stage-[12]|decoder|joint|polish|deep|prefix|prefix-joint)$", "", path.stem)
    published = TOKENIZERS[name].config
    if isinstance(published, TiTokConfig):
        expected = dataclasses.replace(published, finetune_decoder=run.network.finetune_decoder)
        if published.quantize_mode == "vae":  # a VAE has no codebook
            expected = dataclasses.replace(expected, codebook_size=run.network.codebook_size)
        assert run.network == expected


@pytest.mark.parametrize(("name", "shortest"), [("deep", None), ("prefix", 1), ("prefix-joint", 1)])
def test_the_last_runs_of_the_shipped_tokenizer_have_its_shape(name: str, shortest: int | None) -> None:
    run = read_config(CONFIGS / f"titok-mini-32-{name}.toml", TokenizerRun)
    shipped = json.loads((BUNDLED_WEIGHTS / "titok-mini-32" / "config.json").read_text())
    assert tokenizer_config(config_document(run.network)) == run.network
    assert dataclasses.replace(tokenizer_config(shipped), min_latent_tokens=shortest) == run.network


def test_every_published_tokenizer_and_generator_has_its_recipe() -> None:
    names = {path.stem for path in CONFIGS.glob("*.toml")}
    for name, variant in TOKENIZERS.items():
        if isinstance(variant.config, TiTokConfig):
            stages = ["-stage-1", "-stage-2"] if variant.config.is_legacy else [""]
            assert {name + stage for stage in stages} <= names
    for name, generator in GENERATORS.items():
        run = read_config(CONFIGS / f"{name}-generator.toml", GeneratorRun)
        assert generator.config in (None, run.network)


def test_the_shipped_generators_classes_are_named_once_in_small_letters() -> None:
    run = read_config(CONFIGS / "titok-mini-32-generator.toml", GeneratorRun)
    names = list(run.training.classes.values())
    assert len(set(names)) == len(names) == run.network.condition_num_classes == 43
    assert all(name == name.lower() for name in names)
    assert "caltech101/faces" not in run.training.classes


def test_yaml_says_the_same_as_toml(tmp_path: Path) -> None:
    table = tomllib.loads((CONFIGS / "titok-mini-32.toml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(table).replace("0.006", "6e-3"))
    expected = read_config(CONFIGS / "titok-mini-32.toml", TokenizerRun)
    assert read_config(tmp_path / "run.yaml", TokenizerRun) == expected


def test_a_config_is_found_by_its_name_or_its_path(tmp_path: Path) -> None:
    assert find_config("titok-mini-32") == CONFIGS / "titok-mini-32.toml"
    assert find_config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    message = r"titok-maxi is neither a .toml or .yaml file nor a bundled config: onedpiece-b-256-stage-1, "
    with pytest.raises(ConfigError, match=message):
        find_config("titok-maxi")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("warmup_steps", "warm_up_steps", "schedule.warmup_steps: Field required; schedule.warm_up_steps: unknown key"),
        ("width = 192, layers = 4", "widht = 192, layers = 4", "network.encoder.widht: unknown key"),
        ("adamw_lr = 3e-3", "", "optimizer.adamw_lr: Field required"),
        ("batch_size = 64", 'batch_size = "some"', "schedule.batch_size: Input should be a valid integer"),
        (
            'precision = "auto"',
            'precision = "fp8"',
            "optimizer.precision: Input should be 'auto', 'float32' or 'bfloat16'",
        ),
        ("[data]", '[data]\nshards = "x"', "data.shards: unknown key"),
        (
            "pixel_head_blocks = 1",
            'pixel_head_blocks = "two"',
            "network.pixel_head_blocks: Input should be a valid integer",
        ),
        ("adamw_betas = [0.9, 0.98]", "adamw_betas = [0.9]", "optimizer.adamw_betas.1: Field required"),
        ("image_size = 128", "image_size = 120", "network: Value error, image_size 120 is not a multiple"),
        ("[network]", "[net]", "run.toml: expected sections such as network"),
        ("[schedule]", "[schedule", "run.toml: "),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r".*") as caught:
        read_config(changed(tmp_path, old, new), TokenizerRun)
    assert message in str(caught.value)
