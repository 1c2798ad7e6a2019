"""Strict loading of checkpoints, and errors that name what does not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import load_generator, load_tokenizer
from models.checkpoints.bundled import BUNDLED_WEIGHTS
from models.checkpoints.configuration import generator_config, tokenizer_config
from models.checkpoints.loading import HubFile, open_checkpoint
from models.checkpoints.registry import GENERATORS, TOKENIZERS
from models.errors import CheckpointError, ConfigError, UnknownVariantError
from models.networks.generator import build_generator
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.titok import TiTok, TiTokConfig

MINI = BUNDLED_WEIGHTS / "titok-mini-32"

MANIFESTS = {
    "titok-l-32": "titok_l32",
    "titok-b-64": "titok_b64",
    "titok-s-128": "titok_s128",
    "titok-bl-64-vq8k": "titok_bl64_vq8k",
    "titok-bl-128-vq8k": "titok_bl128_vq8k",
    "titok-sl-256-vq8k": "titok_sl256_vq8k",
    "titok-ll-32-vae": "titok_ll32_vae_c16",
    "titok-bl-64-vae": "titok_bl64_vae_c16",
    "titok-bl-128-vae": "titok_bl128_vae_c16",
    "maskgit-vqgan-f16": "maskgit_vqgan_f16_1024",
    "onedpiece-s-256": "onedpiece_s256",
    "onedpiece-b-256": "onedpiece_b256",
    "onedpiece-l-256": "onedpiece_l256",
}


def shapes(network: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def published(manifest: dict[str, Any]) -> dict[str, list[int]]:
    return {name: tensor["shape"] for name, tensor in manifest["tensors"].items()}


@pytest.mark.parametrize("variant", MANIFESTS)
def test_a_tokenizer_has_every_published_tensor_and_no_other(variant: str, golden_manifest: Any) -> None:
    manifest = golden_manifest(MANIFESTS[variant])
    config = TOKENIZERS[variant].config
    with torch.device("meta"):
        network = MaskGITVQGAN(config) if isinstance(config, MaskGITVQGANConfig) else TiTok(config)  # type: ignore[arg-type]
    assert shapes(network) == published(manifest)
    if isinstance(config, TiTokConfig):
        shape = dataclasses.replace(config, min_latent_tokens=None)  # which changes no tensor
        assert tokenizer_config(manifest["config"]) == shape or config.quantize_mode == "vae"
        with torch.device("meta"):
            assert shapes(TiTok(tokenizer_config(manifest["config"]))) == published(manifest)
    hub = TOKENIZERS[variant].weights
    assert isinstance(hub, HubFile)
    assert hub.repo == manifest["hub"]["repo"]
    assert hub.filename == manifest["hub"].get("file", hub.filename)
    if "parameters" in manifest:
        assert sum(tensor.numel() for tensor in network.parameters()) == manifest["parameters"]["total"]


@pytest.mark.parametrize("variant", ["titok-l-32", "titok-b-64", "titok-s-128"])
def test_a_generator_has_every_published_tensor_and_no_other(variant: str, golden_manifest: Any) -> None:
    manifest = golden_manifest("generator_" + MANIFESTS[variant])
    config = generator_config(manifest["config"])
    assert config == GENERATORS[variant].config
    with torch.device("meta"):
        assert shapes(build_generator(config)) == published(manifest)
    sampling, preset = manifest["sampling"]["benchmark"], GENERATORS[variant].presets["published"]
    assert (preset.steps, preset.guidance_scale, preset.guidance_decay, preset.temperature) == (
        sampling["num_sample_steps"],
        sampling["guidance_scale"],
        sampling["guidance_decay"],
        sampling["randomize_temperature"],
    )
    assert preset.softmax_annealing == sampling["softmax_temperature_annealing"]
    assert preset.guidance_power == sampling["guidance_scale_pow"]


def test_512_pixel_shapes_follow_from_the_configuration() -> None:
    vq = {
        "codebook_size": 4096,
        "token_size": 12,
        "use_l2_norm": True,
        "num_latent_tokens": 64,
        "vit_enc_model_size": "large",
        "vit_dec_model_size": "large",
    }
    config = tokenizer_config({"model": {"vq_model": vq}, "dataset": {"preprocessing": {"crop_size": 512}}})
    with torch.device("meta"):
        network = TiTok(config)
        images = network.decode(torch.zeros(1, 64, dtype=torch.int64, device="meta"))
    assert config.image_size == 512
    assert network.encoder.positional_embedding.shape == (32 * 32 + 1, 1024)
    assert images.shape == (1, 3, 512, 512)


def test_old_configs_with_missing_keys_and_interpolations_are_parsed() -> None:
    root = {
        "model": {
            "vq_model": {
                "codebook_size": 4096,
                "token_size": 12,
                "num_latent_tokens": "32",
                "use_l2_norm": True,
                "vit_enc_model_size": "large",
                "vit_dec_model_size": "large",
            },
            "generator": {"image_seq_len": "${model.vq_model.num_latent_tokens}", "condition_num_classes": 1000},
        }
    }
    assert tokenizer_config(root) == TOKENIZERS["titok-l-32"].config
    assert generator_config(root, model_type="ViT") == GENERATORS["titok-l-32"].config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vit_enc_model_size", "huge", "vit_enc_model_size"),
        ("num_latent_tokens", None, "num_latent_tokens"),
        ("num_latent_tokens", "${model.vq_model.num_latent_tokens}", "refers to itself"),
        ("quantize_mode", "fsq", "quantize_mode': Input should be 'vq' or 'vae', not 'fsq'"),
        ("vit_enc_patch_size", 15, "not a multiple of encoder_patch_size"),
    ],
)
def test_an_invalid_config_is_an_error_that_names_the_key(key: str, value: object, message: str) -> None:
    root = json.loads((MINI / "config.json").read_text())
    root["model"]["vq_model"][key] = value
    with pytest.raises(ConfigError, match=message):
        tokenizer_config(root)


def test_a_file_a_folder_and_a_bin_give_the_same_tokenizer(tmp_path: Path) -> None:
    shipped = load_tokenizer("titok-mini-32")
    torch.save(load_file(MINI / "model.safetensors"), tmp_path / "weights.bin")
    shutil.copy(MINI / "config.json", tmp_path)
    images = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for weights in (MINI, MINI / "model.safetensors", tmp_path / "weights.bin"):
        loaded = load_tokenizer("my-own", weights=weights)
        assert loaded.revision == shipped.revision
        assert (loaded.encode(images) == shipped.encode(images)).all()


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    tensors = load_file(MINI / "model.safetensors")
    del tensors["latent_tokens"]
    tensors["surprise"] = torch.zeros(2)
    tensors["encoder.ln_post.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(MINI / "config.json", tmp_path)
    with pytest.raises(CheckpointError) as refused:
        load_tokenizer("titok-mini-32", weights=tmp_path)
    for part in ("missing latent_tokens", "unexpected surprise [2]", "encoder.ln_post.bias is [7], expected"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.nan),
            "latent_tokens has values that are not finite",
        ),
        (
            lambda tensor: tensor.index_fill(0, torch.tensor([1]), -torch.inf),
            "latent_tokens has values that are not finite",
        ),
        (lambda tensor: tensor.to(torch.int8), "latent_tokens is int8, expected floating-point numbers"),
    ],
    ids=["nan", "infinity", "integers"],
)
def test_weights_that_are_no_finite_floating_point_numbers_are_refused(
    tmp_path: Path, spoil: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    tensors = load_file(MINI / "model.safetensors")
    tensors["latent_tokens"] = spoil(tensors["latent_tokens"])
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(MINI / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=f"does not fit TiTok: {message}"):
        load_tokenizer("titok-mini-32", weights=tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"pointer of Git LFS, without the weights; run: git lfs pull"):
        open_checkpoint(tmp_path)


def test_position_ids_of_old_files_are_ignored(tmp_path: Path) -> None:
    folder = BUNDLED_WEIGHTS / "titok-mini-32-generator"
    tensors = load_file(folder / "model.safetensors") | {"model.embeddings.position_ids": torch.arange(33)[None]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    shutil.copy(folder / "config.json", tmp_path)
    assert load_generator("titok-mini-32", weights=tmp_path).revision == load_generator("titok-mini-32").revision


def test_a_generator_without_model_type_is_identified_by_its_tensors(tmp_path: Path) -> None:
    folder = BUNDLED_WEIGHTS / "titok-mini-32-generator"
    config = json.loads((folder / "config.json").read_text())
    del config["model"]["generator"]["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path)
    assert load_generator("titok-mini-32", weights=tmp_path).num_tokens == 32


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_pickle_with_code_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"latent_tokens": Attack()}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointError, match=r"evil\.bin cannot be read as weights"):
        open_checkpoint(tmp_path / "evil.bin")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 64])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(tmp_path)


def test_a_wrapped_state_dict_is_rejected(tmp_path: Path) -> None:
    torch.save({"state_dict": {"latent_tokens": torch.zeros(1)}}, tmp_path / "wrapped.bin")
    with pytest.raises(CheckpointError, match="bare state dict"):
        open_checkpoint(tmp_path / "wrapped.bin")


def test_without_a_network_the_error_says_which_files_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as refused:
        load_tokenizer("titok-l-32")
    page = (
        "https://huggingface.co/yucornetto/tokenizer_titok_l32_imagenet/tree/1c9a2084c59112fd415b7ed97d4c200e864a95de"
    )
    for part in ("HF_HUB_OFFLINE is set", f"download model.safetensors and config.json from {page} into a folder"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_in_the_hub_cache_is_used_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--their-titok"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(MINI, repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for hub_id in (
        "someone/their-titok",
        f"someone/their-titok@{commit}",
        "someone/their-titok@main:model.safetensors",
    ):
        tokenizer = load_tokenizer("theirs", weights=hub_id)
        assert tokenizer.source == f"someone/their-titok@{commit}"
        assert tokenizer.revision == load_tokenizer("titok-mini-32").revision


def test_anything_but_a_file_folder_or_hub_id_is_rejected() -> None:
    for weights in ("nowhere/at/all", "folder/nowhere.safetensors", "/nowhere"):
        with pytest.raises(CheckpointError, match="a folder, or a hub id"):
            open_checkpoint(weights)


def test_an_unknown_variant_is_an_error_that_lists_the_known_ones() -> None:
    for load in (load_tokenizer, load_generator):
        with pytest.raises(UnknownVariantError, match="titok-l-32"):
            load("titok-xl")
