"""All verdicts, on a tiny network with known ids. Its codes are pairs of ties."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import load_tokenizer
from models.checkpoints.bundled import BUNDLED_WEIGHTS
from models.checkpoints.registry import TOKENIZERS
from models.errors import CheckpointError, UnknownVariantError
from models.networks.titok import TiTok, TiTokConfig, TransformerSize
from models.verification import KNOWN_TOKENS, KnownTokens, Verdict, Verification, verify_tokenizer

TOKENS = 16
Known = tuple[KnownTokens, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.safetensors`` and ``config.json`` of 16 tokens on 16x16 pixels, and two images."""
    torch.manual_seed(0)
    size = TransformerSize(width=64, layers=1, heads=1)
    config = TiTokConfig(
        image_size=16,
        num_latent_tokens=TOKENS,
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
    )
    network = TiTok(config)
    with torch.no_grad():
        codes = network.quantize.embedding.weight.normal_()
        codes[1::2] = codes[::2] + 1e-4 * torch.randn(32, 4)
    home = tmp_path_factory.mktemp("tiny")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, home / "model.safetensors")
    vq_model = {
        "codebook_size": 64,
        "token_size": 4,
        "use_l2_norm": True,
        "num_latent_tokens": TOKENS,
        "is_legacy": False,
        "finetune_decoder": False,
        "quantize_mode": "vq",
        **{f"vit_{part}_model_size": {"width": 64, "layers": 1, "heads": 1} for part in ("enc", "dec")},
        **{f"vit_{part}_patch_size": 8 for part in ("enc", "dec")},
        "pixel_head": "conv",
        "pixel_head_channels": 8,
        "pixel_head_blocks": config.pixel_head_blocks,
    }
    text = json.dumps({"model": {"vq_model": vq_model}, "dataset": {"preprocessing": {"crop_size": 16}}})
    (home / "config.json").write_text(text)
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / f"{seed}.png")
    return home


@pytest.fixture(scope="module")
def known(folder: Path) -> Known:
    tokenizer = load_tokenizer("tiny", weights=folder)
    tokens = []
    for name in ("0.png", "1.png"):
        ids = tokenizer.encode(np.asarray(Image.open(folder / name))[None])[0].tolist()
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        tokens.append(KnownTokens(image=name, sha256=digest[:16], ids=tuple(ids)))
    return tuple(tokens)


@pytest.fixture
def altered(folder: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], object]], Path]:
    """Another checkpoint: the tiny one after some change of its tensors."""

    def alter(change: Callable[[dict[str, Tensor]], object]) -> Path:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        return tmp_path

    return alter


def check(weights: Path, known: Known, images: Path | None, sha256: str | None = None) -> Verification:
    return verify_tokenizer("tiny", weights=weights, images=images, sha256=sha256, known={"tiny": known})


def with_ids(known: Known, changes: dict[int, int]) -> Known:
    """``known`` with other ids at some positions of the first image."""
    ids = tuple(changes.get(position, own) for position, own in enumerate(known[0].ids))
    return (replace(known[0], ids=ids), known[1])


def checksum(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_reproducing_all_known_ids_is_proof(folder: Path, known: Known) -> None:
    found = check(folder, known, folder)
    assert found.verdict is Verdict.PROVEN
    assert found.reasons == ("32 of 32 ids equal the published ones",)
    assert [(one.image, one.equal, one.tokens) for one in found.comparisons] == [("0.png", 16, 16), ("1.png", 16, 16)]


def test_the_file_and_its_weights_are_described(folder: Path, known: Known) -> None:
    found = check(folder, known, folder)
    tokenizer = load_tokenizer("tiny", weights=folder)
    assert found.file_bytes == (folder / "model.safetensors").stat().st_size
    assert found.sha256 == checksum(folder)
    assert found.digest is not None
    assert tokenizer.revision.startswith(found.digest[:12])
    assert found.tensors == len(load_file(folder / "model.safetensors"))
    assert found.parameters == tokenizer.num_parameters
    assert found.finite
    assert found.round_trip is not None


def test_a_tie_is_proof_up_to_rounding(folder: Path, known: Known) -> None:
    own = known[0].ids[3]
    found = check(folder, with_ids(known, {3: own ^ 1}), folder)
    assert found.verdict is Verdict.UP_TO_ROUNDING
    assert found.reasons == ("31 of 32 ids equal the published ones",)
    (difference,) = found.comparisons[0].differences
    assert (difference.position, difference.published, difference.found) == (3, own ^ 1, own)
    assert 0 <= difference.margin < 1e-2


def test_many_ties_are_not_rounding(folder: Path, known: Known) -> None:
    found = check(folder, with_ids(known, {place: known[0].ids[place] ^ 1 for place in range(3)}), folder)
    assert found.verdict is Verdict.REFUTED
    assert found.reasons == ("3 of 32 ids differ, all by ties: too many for rounding",)


def test_one_differing_id_fails(folder: Path, known: Known) -> None:
    own = known[0].ids[5]
    other = (own + 7) % 64
    found = check(folder, with_ids(known, {5: other}), folder)
    assert found.verdict is Verdict.REFUTED
    assert f"1 of 32 ids differ; first: position 5 of 0.png is {own}, published {other}" in found.reasons[0]


def test_other_weights_are_refuted(
    known: Known, folder: Path, altered: Callable[[Callable[[dict[str, Tensor]], object]], Path]
) -> None:
    weights = altered(lambda tensors: tensors["latent_tokens"].normal_())
    found = check(weights, known, folder)
    assert found.verdict is Verdict.REFUTED
    assert " of 32 ids differ" in found.reasons[0]


def test_without_images_nothing_is_proven(folder: Path, known: Known) -> None:
    found = check(folder, known, None)
    assert found.verdict is Verdict.NOT_PROVEN
    assert found.reasons == ("pass --images, a folder with 0.png and 1.png",)


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "another file"])
def test_a_missing_or_different_image_proves_nothing(folder: Path, known: Known, tmp_path: Path, missing: bool) -> None:
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    if not missing:
        (tmp_path / "1.png").write_bytes((folder / "0.png").read_bytes())
    found = check(folder, known, tmp_path)
    assert found.verdict is Verdict.NOT_PROVEN
    reason = "cannot be read: No such file or directory" if missing else "is another file: its SHA-256 begins with "
    assert found.reasons[0].startswith(f"1.png {reason}")
    assert found.comparisons[0].equal == 16


def test_one_differing_image_fails(folder: Path, known: Known, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    found = check(folder, with_ids(known, {0: (known[0].ids[0] + 7) % 64}), tmp_path)
    assert found.verdict is Verdict.REFUTED


def test_a_matching_checksum_verifies_and_a_different_one_fails(folder: Path, known: Known) -> None:
    found = check(folder, known, None, checksum(folder).upper())
    assert (found.verdict, found.reasons) == (Verdict.PROVEN, ("the file has the given SHA-256",))
    for images in (None, folder):
        found = check(folder, known, images, "0" * 64)
        assert found.verdict is Verdict.REFUTED
        assert found.reasons == (f"the file's SHA-256 is {checksum(folder)}, not {'0' * 64}",)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        check(folder, known, None, "abc")


def test_a_matching_checksum_does_not_override_differing_ids(folder: Path, known: Known) -> None:
    found = check(folder, with_ids(known, {5: (known[0].ids[5] + 7) % 64}), folder, checksum(folder))
    assert found.verdict is Verdict.REFUTED


def test_a_truncated_file_is_refuted(folder: Path, known: Known, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    found = check(tmp_path, known, folder)
    assert found.verdict is Verdict.REFUTED
    assert "cannot be read as weights" in found.reasons[0]
    assert (found.file_bytes, found.sha256) == (len(whole) // 2, checksum(tmp_path))


def test_values_that_are_not_finite_are_refuted(
    known: Known, folder: Path, altered: Callable[[Callable[[dict[str, Tensor]], object]], Path]
) -> None:
    found = check(altered(lambda tensors: tensors["latent_tokens"][0].fill_(torch.nan)), known, folder)
    assert found.verdict is Verdict.REFUTED
    assert not found.finite
    assert found.reasons[0].endswith("does not fit TiTok: latent_tokens has values that are not finite")


def test_weights_of_zeros_are_refuted(
    known: Known, folder: Path, altered: Callable[[Callable[[dict[str, Tensor]], object]], Path]
) -> None:
    found = check(altered(lambda tensors: [tensor.zero_() for tensor in tensors.values()]), known, None)
    assert (found.verdict, found.reasons) == (Verdict.REFUTED, ("decoding gives a single colour",))


def test_an_extra_tensor_is_refuted(
    known: Known, folder: Path, altered: Callable[[Callable[[dict[str, Tensor]], object]], Path]
) -> None:
    found = check(altered(lambda tensors: tensors.update(extra=torch.zeros(1))), known, folder)
    assert found.verdict is Verdict.REFUTED
    assert "unexpected extra" in found.reasons[0]


def test_a_published_variant_ignores_the_folder_s_config() -> None:
    found = verify_tokenizer("titok-b-64", weights=BUNDLED_WEIGHTS / "titok-mini-32")
    assert found.verdict is Verdict.REFUTED
    assert "does not fit TiTok" in found.reasons[0]


def test_a_variant_without_known_ids_needs_a_checksum() -> None:
    found = verify_tokenizer("titok-mini-32")
    assert (found.verdict, found.reasons) == (
        Verdict.NOT_PROVEN,
        ("no published ids for this variant: pass --sha256",),
    )


def test_missing_weights_and_unknown_names_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        verify_tokenizer("titok-l-32", weights=tmp_path / "model.safetensors")
    with pytest.raises(UnknownVariantError, match="titok-l32"):
        verify_tokenizer("titok-l32", weights=tmp_path)


def test_the_published_tokens_fit_their_variant() -> None:
    for name, images in KNOWN_TOKENS.items():
        config = TOKENIZERS[name].config
        assert isinstance(config, TiTokConfig)
        assert config.use_l2_norm  # the tolerance is one on the unit sphere
        for known in images:
            assert len(known.ids) == config.num_latent_tokens
            assert all(0 <= number < config.codebook_size for number in known.ids)
