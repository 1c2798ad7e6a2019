"""The tokenizer's public interface: types, errors, and batch invariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from models import Tokenizer, load_tokenizer
from models.codes.code_format import PAD, CodeError
from tests.crops import crops_of
from tests.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("titok-mini-32")


@pytest.fixture(scope="module")
def images(photographs: list[Image.Image]) -> np.ndarray:
    return crops_of(photographs, 64)


def test_ids_do_not_depend_on_the_batch(tokenizer: Tokenizer, images: np.ndarray) -> None:
    unbatched = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert (tokenizer.encode(images) == unbatched).all()
    order = np.random.default_rng(1).permutation(len(images))
    for size in (2, 3, 8, 31):
        batched = torch.cat([tokenizer.encode(images[order[i : i + size]]) for i in range(0, len(images), size)])
        assert (batched == unbatched[order]).all()


def test_an_image_with_a_close_decision_is_reencoded_unbatched(tokenizer: Tokenizer, images: np.ndarray) -> None:
    network = tokenizer.network
    unbatched = [tokenizer.encode(image[None])[0] for image in images[:2]]
    assign = network.quantize.assign

    def batch_dependent(latents: torch.Tensor) -> object:
        assignment = assign(latents)
        if len(latents) > 1:
            assignment.ids[1, 5] = (assignment.ids[1, 5] + 1) % tokenizer.codebook_size
            assignment.margin[1, 5] = 1e-6
        return assignment

    try:
        network.quantize.assign = batch_dependent  # type: ignore[method-assign, assignment]
        together = tokenizer.encode(images[:2])
    finally:
        del network.quantize.assign
    assert (together == torch.stack(unbatched)).all()


def test_encode_and_decode_accept_arrays_and_tensors(tokenizer: Tokenizer, images: np.ndarray) -> None:
    read_only = images[:2].copy()
    read_only.flags.writeable = False
    for batch in (images[:2], torch.from_numpy(images[:2]), read_only):
        ids = tokenizer.encode(batch)
        assert (ids.dtype, tuple(ids.shape)) == (torch.int64, (2, 32))
        for tokens in (ids, ids.numpy(), ids.to(torch.int32)):
            decoded = tokenizer.decode(tokens)
            assert (decoded.dtype, tuple(decoded.shape)) == (torch.uint8, (2, 128, 128, 3))
    latents = tokenizer.latents(images[:2])
    assert (latents.dtype, tuple(latents.shape)) == (torch.float32, (2, 32, 12))


def test_an_empty_batch_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(np.empty((0, 128, 128, 3), np.uint8)).shape == (0, 32)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((128, 128, 3), np.uint8),
        np.zeros((1, 3, 128, 128), np.uint8),
        np.zeros((1, 128, 128, 3), np.float32),
    ],
)
def test_images_of_another_shape_or_dtype_are_rejected(tokenizer: Tokenizer, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected images uint8 \[B, 128, 128, 3\]"):
        tokenizer.encode(images)


def test_ids_out_of_range_never_reach_the_device(tokenizer: Tokenizer) -> None:
    for wrong in (4096, -2):
        with pytest.raises(CodeError, match=r"out of range 0\.\.4095"):
            tokenizer.decode(torch.full((1, 32), wrong))
    with pytest.raises(CodeError, match="1 to 32 token ids, not 33"):
        tokenizer.decode(torch.zeros((1, 33), dtype=torch.int64))


def test_the_revision_depends_on_the_precision(tokenizer: Tokenizer) -> None:
    low = load_tokenizer("titok-mini-32", dtype="bfloat16")
    assert low.revision == f"{tokenizer.revision}-bf16"
    assert load_tokenizer("titok-mini-32", dtype="auto").revision == tokenizer.revision
    with pytest.raises(ValueError, match="auto, float32, tf32, tf32x3, float16, bfloat16"):
        load_tokenizer("titok-mini-32", dtype="int8")
    with pytest.raises(ValueError, match=r"'tf32' needs a CUDA device .* not cpu"):
        load_tokenizer("titok-mini-32", dtype="tf32")


def test_lower_precision_stays_close(tokenizer: Tokenizer, images: np.ndarray) -> None:
    low = load_tokenizer("titok-mini-32", dtype="bfloat16")
    ids = tokenizer.encode(images[:8])
    assert (low.encode(images[:8]) == ids).float().mean() > 0.7
    difference = low.decode(ids).int() - tokenizer.decode(ids).int()
    assert difference.abs().float().mean() < 2.0


def test_the_last_block_computes_only_the_positions_that_are_needed(tokenizer: Tokenizer, images: np.ndarray) -> None:
    """Latents after the encoder's, patches after the decoder's."""
    seen: list[int] = []
    halves = (tokenizer.network.encoder, tokenizer.network.decoder)
    hooks = [
        half.transformer[-1].mlp.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[1])) for half in halves
    ]
    try:
        tokenizer.decode(tokenizer.encode(images[:1]))
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [32, (128 // tokenizer.patch_size) ** 2]


def test_images_are_decoded_into_the_given_tensor(tokenizer: Tokenizer, images: np.ndarray) -> None:
    ids = tokenizer.encode(images[:2])
    into = torch.zeros(2, 128, 128, 3, dtype=torch.uint8)
    assert tokenizer.submit_decode(ids, into=into)() is into
    assert torch.equal(into, tokenizer.decode(ids))


def test_a_vae_has_vectors_instead_of_ids() -> None:
    vae = tiny_tokenizer(quantize_mode="vae")
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    latents = vae.latents(pixels)
    assert latents.shape == (2, 16, 5)
    assert vae.decode(latents).shape == (2, 32, 32, 3)
    with pytest.raises(TypeError, match="is a VAE"):
        vae.encode(pixels)


LENGTHS = [16, 1, 8, 16, 3, 8, 2]


@pytest.fixture(scope="module")
def short_codes() -> np.ndarray:
    """Codes of the tiny tokenizer, of the lengths above."""
    ids = np.random.default_rng(0).integers(0, 64, (len(LENGTHS), 16))
    return np.where(np.arange(16) < np.array(LENGTHS)[:, None], ids, PAD)


def test_codes_in_a_batch_of_mixed_lengths_decode_as_with_those_of_their_length(short_codes: np.ndarray) -> None:
    tokenizer = tiny_tokenizer(min_tokens=1)
    expected = torch.empty(len(LENGTHS), 32, 32, 3, dtype=torch.uint8)
    for length in set(LENGTHS):
        rows = np.array(LENGTHS) == length
        expected[torch.from_numpy(rows)] = tokenizer.decode(short_codes[rows, :length])
    assert (tokenizer.decode(short_codes) == expected).all()
    assert len({image.numpy().tobytes() for image in expected}) == len(LENGTHS)
    into = torch.empty_like(expected)
    tokenizer.submit_decode(short_codes, into=into)()
    assert (into == expected).all()


def test_padding_that_is_masked_has_no_influence(short_codes: np.ndarray) -> None:
    """The path of a CUDA device, where shorter codes share a pass."""
    tokenizer = tiny_tokenizer(min_tokens=1)
    [masked] = tokenizer.decoder(torch.from_numpy(short_codes), 1)
    difference = masked.int() - tokenizer.decode(short_codes).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3


def test_the_shortest_code_is_the_variants(short_codes: np.ndarray) -> None:
    with pytest.raises(CodeError, match="an image has 2 to 16 token ids, not 1"):
        tiny_tokenizer(min_tokens=2).decode(short_codes)
    with pytest.raises(CodeError, match=r"-1 at position 1 is out of range 0\.\.63"):
        tiny_tokenizer(min_tokens=1).decode(np.array([[3, PAD, 3]]))
    with pytest.raises(CodeError, match="an image has 16 token ids, not 8"):
        tiny_tokenizer().decode(short_codes[:1, :8])


def test_a_vae_gives_the_mean_of_its_posterior_or_a_sample_by_seed() -> None:
    vae = tiny_tokenizer(quantize_mode="vae")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    posterior = vae.network.posterior(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0)
    assert torch.allclose(vae.latents(pixels), posterior.mean, atol=1e-5)
    assert torch.allclose(vae.submit_latents(pixels)(), torch.cat(posterior, dim=2), atol=1e-5)
    samples = vae.latents(pixels, seeds=[4, 5, 6])
    alone = torch.cat([vae.latents(pixels[row : row + 1], seeds=[4 + row]) for row in range(3)])
    assert torch.allclose(samples, alone, atol=1e-5)
    noise = (samples - posterior.mean) / posterior.std
    assert 0.5 < float(noise.std()) < 1.5
    vae.calibrate(pixels, [2], seconds=1.0)  # has no decisions to calibrate
    assert vae.latents(pixels[:0]).shape == (0, 16, 5)


def test_only_a_vae_has_samples(tokenizer: Tokenizer, images: np.ndarray) -> None:
    with pytest.raises(CodeError, match="only a VAE"):
        tokenizer.latents(images[:1], seeds=[1])
