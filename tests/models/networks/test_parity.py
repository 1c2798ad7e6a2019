"""Parity with the published implementation, with the same synthetic weights (see tests/golden/README.md).

Deviations are relative to the largest value of the reference tensor; ids must be equal where the recorded margin exceeds
the rounding error. All comparisons are printed in a table after the run.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoints.loading import Checkpoint, load_strictly
from models.checkpoints.registry import GENERATORS, TOKENIZERS
from models.generation import Generator
from models.networks.generator import GeneratorConfig, build_generator
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.networks.titok import TiTok, TiTokConfig
from models.sampling.settings import SamplingSettings
from models.sampling.steps import SamplingRow, StepNoise, apply_guidance, pack_rows, sample_step, unpack_rows
from tests.memory import trim_heap

RELATIVE = 1e-3
slow = pytest.mark.slow

TOKENIZER_CASES = [
    pytest.param("titok_s128", "titok-s-128"),
    pytest.param("titok_b64", "titok-b-64", marks=slow),
    pytest.param("titok_l32", "titok-l-32", marks=slow),
    pytest.param("titok_sl256_vq8k", "titok-sl-256-vq8k", marks=slow),
    pytest.param("titok_bl64_vae_c16", "titok-bl-64-vae", marks=slow),
    pytest.param("onedpiece_s256", "onedpiece-s-256", marks=slow),
]
VARIANTS = {
    "generator_titok_l32": "titok-l-32",
    "generator_titok_b64": "titok-b-64",
    "generator_titok_s128": "titok-s-128",
}
# Every so many steps of a trace are replayed: all 64 are 128 passes through 295 million parameters.
TRACES = {
    "generator_titok_l32": {"benchmark": 1, "readme": 1},
    "generator_titok_b64": {"benchmark": 1},
    "generator_titok_s128": {"8steps": 1, "benchmark": 16},
}

Weights = Callable[..., dict[str, torch.Tensor]]
Case = Callable[[str], Mapping[str, np.ndarray]]
Record = Callable[..., None]


def deviation(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference, relative to the reference's largest value."""
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


class HalfTiTok(TiTok):
    """A tokenizer with one half in memory at a time: L-32 as a whole takes 2.6 GB."""

    def __init__(self, config: TiTokConfig, name: str, weights: Weights) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self._name, self._weights = name, weights

    def load(self, *modules: str) -> None:
        """Loads every tensor outside the encoder and the decoder, and those that begin with one of ``modules``."""
        wanted = [
            key for key in self.state_dict() if key.startswith(modules) or not key.startswith(("encoder.", "decoder."))
        ]
        self.to("meta")
        absent = self.load_state_dict(self._weights(self._name, wanted), strict=False, assign=True)
        assert not absent.unexpected_keys
        assert {*absent.missing_keys} == {*self.state_dict()} - {*wanted}
        self.set_compute_dtype(encoder=torch.float32, decoder=torch.float32)
        self.eval()


class ImagesOf:
    """The arrays of a case, with the chosen images only."""

    def __init__(self, case: Mapping[str, np.ndarray], chosen: slice) -> None:
        self._case, self._chosen = case, chosen

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._case[name]
        return array[self._chosen] if array.ndim else array


def pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0


def to_uint8(images: torch.Tensor) -> np.ndarray:
    return images.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(autouse=True)
def memory_after_each_test() -> Iterator[None]:
    yield
    release_memory()


@pytest.fixture(autouse=True, scope="module")
def memory_after_the_last_generator() -> Iterator[None]:
    yield
    release_memory()


def release_memory() -> None:
    gc.collect()
    trim_heap()


@pytest.mark.parametrize(("name", "variant"), TOKENIZER_CASES)
@torch.inference_mode()
def test_tokenizer_parity(
    name: str, variant: str, golden_case: Case, golden_weights: Weights, record_parity: Record
) -> None:
    config = TOKENIZERS[variant].config
    assert isinstance(config, TiTokConfig)
    # Both images for the smallest network, one for those that take seconds for each.
    images_used = slice(2 if variant == "titok-s-128" else 1)
    case, network = ImagesOf(golden_case(name), images_used), HalfTiTok(config, name, golden_weights)
    network.load("encoder.")
    images = pixels(case["images"])
    vae = network.config.quantize_mode == "vae"

    if vae:
        posterior = network.posterior(images)
        for field in ("mean", "logvar", "std"):
            ours = getattr(posterior, field).transpose(1, 2)[:, :, None].numpy()
            assert record_parity(name, field, deviation(ours, case[field])) <= RELATIVE
        assert record_parity(name, "kl", deviation(posterior.kl().numpy(), case["kl"])) <= RELATIVE
        codes = posterior.mean
        network.load("decoder.")
        random_images = network.decode_codes(torch.from_numpy(case["sample"])[:1, :, 0].transpose(1, 2))
    else:
        latents: list[torch.Tensor] = []
        network.encoder.register_forward_hook(lambda *call: latents.append(call[2]))
        assignment = network.encode(images)
        reference = torch.from_numpy(case["z"])[:, :, 0].transpose(1, 2).numpy()
        assert record_parity(name, "latents", deviation(latents[0].numpy(), reference)) <= RELATIVE
        sure = case["token_margin"] > 10 * float(case["fp64_err_z"])
        equal = assignment.ids.numpy() == case["tokens"]
        record_parity(name, "ids", float("nan"), int(equal.sum()), equal.size)
        assert equal[sure].all()
        assert np.abs(assignment.margin.numpy() - case["token_margin"]).max() < 1e-3
        # From here on the reference's ids, so that one flipped id could not hide a second defect.
        network.load("decoder.")
        codes = network.quantize.lookup(torch.from_numpy(case["tokens"]).long())
        reference = torch.from_numpy(case["latent"])[:, :, 0].transpose(1, 2).numpy()
        assert deviation(codes.numpy(), reference) <= RELATIVE
        random_images = network.decode(torch.from_numpy(case["random_tokens"])[:1].long())
    if network.config.is_legacy:
        logits = network.decoder(codes)
        images = network.mix(logits)
        ours = logits.transpose(1, 2).unflatten(2, (16, 16))[:, ::16, ::2, ::2].numpy()  # type: ignore[no-untyped-call]
        assert record_parity(name, "pixel logits", deviation(ours, case["pixel_logits"])) <= RELATIVE
        likeliest = logits.argmax(dim=2).reshape(-1, 16, 16).numpy() == case["pixel_argmax"]
        record_parity(name, "pixel argmax", float("nan"), int(likeliest.sum()), likeliest.size)
        assert likeliest[case["pixel_argmax_margin"] > 10 * float(case["fp64_err_pixel_logits"])].all()
    else:
        images = network.decode_codes(codes)
    check_images(name, case, images, random_images, record_parity)


def check_images(name: str, case: Any, images: torch.Tensor, random_images: torch.Tensor, record: Record) -> None:
    crop = images[:, :, 112:144, 112:144].numpy()
    assert record(name, "image (float crop)", deviation(crop, case["recon_crop"])) <= RELATIVE
    assert np.abs(images.mean(dim=(2, 3)).numpy() - case["recon_mean"]).max() <= RELATIVE
    levels = np.abs(to_uint8(images).astype(int) - case["recon_u8"]).max()
    assert record(name, "image (levels of 255)", float(levels)) <= 1
    crop = random_images[:, :, 112:144, 112:144].numpy()
    assert record(name, "image of random tokens", deviation(crop, case["random_recon_crop"][:1])) <= RELATIVE


@slow
@torch.inference_mode()
def test_one_d_piece_parity_by_length(golden_case: Case, golden_weights: Weights, record_parity: Record) -> None:
    name = "onedpiece_s256"
    config = TOKENIZERS["onedpiece-s-256"].config
    assert isinstance(config, TiTokConfig)
    case, network = golden_case(name), HalfTiTok(config, name, golden_weights)
    network.load("decoder.")
    tokens = torch.from_numpy(case["tokens"])[:1].long()
    for row, length in enumerate(case["lengths"].tolist()[:-1]):
        logits = network.decoder(network.quantize.lookup(tokens[:, :length]))
        ours = logits.transpose(1, 2).unflatten(2, (16, 16))[:, ::64, ::4, ::4].numpy()
        label = f"pixel logits, {length} tokens"
        reference = case["pixel_logits_by_length"][row, :1]
        assert record_parity(name, label, deviation(ours, reference)) <= RELATIVE
        if length not in (8, 32):  # the pixel decoder takes most of the time
            continue
        images = network.mix(logits)
        crop, reference = images[:, :, 112:144, 112:144].numpy(), case["recon_crop_by_length"][row, :1]
        assert record_parity(name, f"image crop, {length} tokens", deviation(crop, reference)) <= RELATIVE
        means = images.mean(dim=(2, 3)).numpy() - case["recon_mean_by_length"][row, :1]
        assert np.abs(means).max() <= RELATIVE
        if length == 32:
            levels = np.abs(to_uint8(images).astype(int) - case["recon_u8_len32"][:1])
            assert record_parity(name, "image levels, 32 tokens", float(levels.max())) <= 1
            padded = network.decoder(
                network.quantize.lookup(tokens), present=torch.arange(config.num_latent_tokens)[None] < length
            )
            assert record_parity(name, "logits with a mask", deviation(padded.numpy(), logits.numpy())) <= RELATIVE


@torch.inference_mode()
def test_maskgit_vqgan_parity(golden_case: Case, golden_weights: Weights, record_parity: Record) -> None:
    name = "maskgit_vqgan_f16_1024"
    case = golden_case(name)
    with torch.device("meta"):
        network = MaskGITVQGAN(MaskGITVQGANConfig())
    load_strictly(network, Checkpoint(tensors=golden_weights(name), config=None, source=name))
    network.set_compute_dtype(encoder=torch.float32, decoder=torch.float32)
    images = pixels(case["images"])
    hidden = network.eval().latents(images).transpose(1, 2).reshape(2, 256, 16, 16)[:, ::8].numpy()
    assert record_parity(name, "latents", deviation(hidden, case["hidden"])) <= RELATIVE
    equal = network.encode(images).ids.numpy() == case["codes"]
    record_parity(name, "ids", float("nan"), int(equal.sum()), equal.size)
    assert equal[case["code_margin"] > 10 * float(case["fp64_err_hidden"])].all()
    decoded = network.decode(torch.from_numpy(case["codes"]).long())
    crop = decoded[:, :, 112:144, 112:144].numpy()
    assert record_parity(name, "image (float crop)", deviation(crop, case["recon_crop"])) <= RELATIVE
    levels = np.abs(to_uint8(decoded).astype(int) - case["recon_u8"]).max()
    assert record_parity(name, "image (levels of 255)", float(levels)) <= 1


@pytest.fixture(scope="module")
def generator(request: pytest.FixtureRequest, golden_weights: Weights) -> Generator:
    """The generator that the parameter names, the same one for all of its tests."""
    release_memory()  # of the generator before
    published = GENERATORS[VARIANTS[request.param]]
    assert isinstance(published.config, GeneratorConfig)
    with torch.device("meta"):
        network = build_generator(published.config)
    weights = golden_weights(request.param)
    load_strictly(network, Checkpoint(tensors=weights, config=None, source=request.param))
    return Generator(
        network,
        variant=published,
        names=(),
        digest="",
        source=request.param,
        device=torch.device("cpu"),
        dtype="float32",
    )


@slow
@pytest.mark.parametrize("generator", VARIANTS, indirect=True)
def test_generator_logits_parity(generator: Generator, golden_case: Case, record_parity: Record) -> None:
    name = generator.source
    case = golden_case(name)
    labels = [None if null else int(label) for label, null in zip(case["labels"], case["is_null_class"], strict=True)]
    logits = generator.logits(torch.from_numpy(case["input_ids"]).long(), labels)
    assert record_parity(name, "logits", deviation(logits[:, :, ::64].numpy(), case["logits"])) <= RELATIVE
    assert np.abs(logits.logsumexp(dim=2).numpy() - case["logits_logsumexp"]).max() <= RELATIVE
    equal = logits.argmax(dim=2).numpy() == case["logits_argmax"]
    record_parity(name, "likeliest ids", float("nan"), int(equal.sum()), equal.size)
    assert equal[case["logits_argmax_margin"] > 1e-3].all()


@slow
@pytest.mark.parametrize("generator", VARIANTS, indirect=True)
def test_sampling_trace_parity_with_replayed_noise(
    generator: Generator, golden_case: Case, golden_noise: Callable[..., np.ndarray], record_parity: Record
) -> None:
    for trace, stride in TRACES[generator.source].items():
        name = f"{generator.source} {trace}"
        replay_trace(
            name, generator, golden_case(f"{generator.source}_trace_{trace}"), stride, golden_noise, record_parity
        )


def replay_trace(
    name: str, generator: Generator, case: Any, stride: int, noise_of: Callable[..., np.ndarray], record: Record
) -> None:
    """Each step starts from the recorded ids: the first one with every row, the others with one row in turn."""
    settings = published_settings(json.loads(str(case["settings"])))
    labels = [int(label) for label in case["labels"]]
    count, compared, (batch, num_tokens) = 0, 0, case["ids_before_step"].shape[1:]
    mask = generator.codebook_size
    for step in sorted({*range(0, settings.steps, stride), settings.steps - 1}):
        chosen = [step // stride % batch] if step else list(range(batch))
        given, after = case["ids_before_step"][step : step + 2, chosen]
        rows = [
            SamplingRow(labels[row], 0, settings, torch.from_numpy(ids).long(), step)
            for row, ids in zip(chosen, given, strict=True)
        ]
        tokens, parameters = unpack_rows(pack_rows(rows))
        conditional = generator.logits(tokens, [labels[row] for row in chosen])
        needed = settings.needs_unconditional(step)
        assert 1 + needed == case["num_forward"][step]
        assert settings.guidance_weight(step) == pytest.approx(case["cfg_scale"][step])
        assert settings.token_noise_scale(step) == settings.confidence_noise_scale(step)
        assert settings.confidence_noise_scale(step) == pytest.approx(case["annealed_temperature"][step])
        assert settings.logit_divisor(step) == pytest.approx(case["softmax_temperature"][step])
        guided = apply_guidance(
            parameters, conditional, generator.logits(tokens, [None] * len(chosen)) if needed else conditional
        )
        if step == 0:
            first = deviation(conditional[:, :, ::64].numpy(), case["first_step_logits"])
            assert record(name, "logits of the first step", first) <= RELATIVE
        key = f"{case['noise_key']}/step{step}"
        noise = StepNoise(
            torch.from_numpy(noise_of(f"{key}/token", (batch, num_tokens, mask), int(case["noise_seed"]))[chosen]),
            torch.from_numpy(noise_of(f"{key}/confidence", (batch, num_tokens), int(case["noise_seed"]))[chosen]),
        )
        outcome = sample_step(parameters, guided, tokens, noise, mask_token=mask)
        count, compared = count + int((outcome.tokens.numpy() == after).sum()), compared + after.size
        assert (outcome.sampled.numpy() == case["sampled_ids"][step, chosen]).all()
        assert (outcome.tokens.numpy() == after).all()
    record(name, "ids of the steps", float("nan"), count, compared)


def published_settings(recorded: dict[str, Any]) -> SamplingSettings:
    return SamplingSettings(
        steps=recorded["num_sample_steps"],
        guidance_scale=recorded["guidance_scale"],
        guidance_decay=recorded["guidance_decay"],
        guidance_power=recorded["guidance_scale_pow"],
        temperature=recorded["randomize_temperature"],
        softmax_annealing=recorded["softmax_temperature_annealing"],
    )
