"""Exported files compute what PyTorch computes, for every kind of network and any batch size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models.errors import ExportError, missing_package
from models.export.comparison import OnnxGraph, compare_decoder, compare_encoder, compare_generator
from models.export.onnx_file import export_generator, export_tokenizer
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.titok import TiTok, TiTokConfig, TransformerSize
from models.tokenizer import Tokenizer
from tests.tiny_models import tiny_generator, tiny_tokenizer

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def two_stage(**changes: Any) -> Tokenizer:
    """A network of the legacy family, with a small pixel decoder."""
    torch.manual_seed(0)
    size = TransformerSize(width=32, layers=1, heads=2)
    config = TiTokConfig(num_latent_tokens=4, encoder=size, decoder=size, image_size=32, codebook_size=64, **changes)
    return named(TiTok(config))


def named(network: TiTok | MaskGITVQGAN, dtype: str = "float32") -> Tokenizer:
    torch.nn.init.normal_(network.quantize.embedding.weight)
    return Tokenizer(network, name="tiny", digest="0" * 64, source="test", device=torch.device("cpu"), dtype=dtype)


@pytest.fixture
def small_pixel_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "models.networks.titok.MaskGITVQGANConfig", partial(MaskGITVQGANConfig, hidden_channels=32, residual_blocks=1)
    )


def export_both(tokenizer: Tokenizer, folder: Path) -> tuple[Path, Path]:
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    export_tokenizer(tokenizer, "encoder", paths[0], licence="MIT")
    export_tokenizer(tokenizer, "decoder", paths[1], licence="MIT")
    return paths


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "one stage": partial(tiny_tokenizer, min_tokens=1),
    "two stages": partial(two_stage, use_l2_norm=True),
    "VQGAN": lambda: named(
        MaskGITVQGAN(
            MaskGITVQGANConfig(image_size=32, hidden_channels=32, channel_multipliers=(1, 2), residual_blocks=1)
        )
    ),
}


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Encoder and decoder of the tiny tokenizer, whose prefixes decode."""
    return export_both(KINDS["one stage"](), tmp_path_factory.mktemp("exported") / "new")


@pytest.mark.usefixtures("small_pixel_decoder")
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_pixels_are_pytorchs(kind: str, one_stage: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    encoder, decoder = one_stage if kind == "one stage" else export_both(tokenizer, tmp_path)
    for images in (IMAGES, IMAGES[:1]):  # other sizes than the exported one
        ids, deviation = compare_encoder(encoder, tokenizer, images)
        assert ids is not None
        assert ids.is_same
        assert ids.compared == len(images) * tokenizer.num_tokens
        assert deviation < 1e-4
        assert compare_decoder(decoder, tokenizer, images).largest <= 1


def test_latents_of_a_vae_are_pytorchs(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(quantize_mode="vae")
    encoder, decoder = export_both(tokenizer, tmp_path)
    ids, deviation = compare_encoder(encoder, tokenizer, IMAGES)
    assert ids is None
    assert deviation < 1e-4
    assert compare_decoder(decoder, tokenizer, IMAGES).largest <= 1


def test_a_float16_file_is_smaller_and_close(one_stage: tuple[Path, Path], tmp_path: Path) -> None:
    encoder, decoder = export_both(tiny_tokenizer(dtype="float16"), tmp_path)
    assert encoder.stat().st_size < one_stage[0].stat().st_size
    _, deviation = compare_encoder(encoder, tiny_tokenizer(), IMAGES)
    assert 1e-6 < deviation < 0.05
    assert compare_decoder(decoder, tiny_tokenizer(), IMAGES).largest <= 3


@pytest.mark.parametrize("model_type", ["ViT", "UViT"])
def test_all_sampling_steps_choose_pytorchs_tokens(model_type: Any, tmp_path: Path) -> None:
    generator = tiny_generator(model_type)
    export_generator(generator, tmp_path / "step.onnx", licence="MIT")
    compared = compare_generator(tmp_path / "step.onnx", generator, seeds=[1, 2, 3])
    assert compared.compared == 3 * 16 * generator.settings().steps
    assert compared.is_same


def test_a_file_describes_itself(one_stage: tuple[Path, Path]) -> None:
    _, decoder = one_stage
    model = onnx.load(decoder)
    assert {each.key: each.value for each in model.metadata_props} == {
        "name": "tiny",
        "part": "decoder",
        "revision": tiny_tokenizer().revision,
        "dtype": "float32",
        "licence": "MIT",
        "source": "test",
        "num_tokens": "16",
        "min_tokens": "1",
        "codebook_size": "64",
        "token_size": "5",
        "image_size": "32",
    }
    (opset,) = model.opset_import
    assert opset.version == 18
    assert OnnxGraph(decoder)(ids=np.zeros((5, 16), np.int64))["images"].shape == (5, 32, 32, 3)
    assert sorted(path.name for path in decoder.parent.iterdir()) == ["decoder.onnx", "encoder.onnx"]


def test_what_cannot_be_exported_has_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match="tiny cannot be exported in bfloat16: choose float32 or float16"):
        export_tokenizer(tiny_tokenizer(dtype="bfloat16"), "encoder", path, licence="MIT")
    with pytest.raises(ExportError, match="has no pixel decoder: it predicts MaskGIT-VQGAN codes"):
        export_tokenizer(two_stage(finetune_decoder=False), "decoder", path, licence="MIT")
    network = tiny_generator()
    network.network.forward = lambda tokens, labels: tokens[: int(labels[0])]
    with pytest.raises(ExportError, match="the generator of titok-mini-32 cannot be exported: "):
        export_generator(network, path, licence="MIT")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_has_a_command() -> None:
    message = missing_package(ModuleNotFoundError(name="onnxruntime"))
    assert message is not None
    assert message.endswith("(extra 'export'); in a checkout of the repository, run: make install")
