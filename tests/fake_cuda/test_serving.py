"""Serving on a CUDA device: graphs, transfers and memory give the results of a CPU, with every access in order."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pytest

from models.codes.code_format import PAD
from service.engine.protocol import RowState
from service.inference import device as inference
from service.inference.device import ModelDevice, open_device
from service.settings import Settings
from tests.fake_cuda import FakeCuda
from tests.tiny_models import tiny_generator, tiny_tokenizer

COUNT = 11


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def device() -> Iterator[ModelDevice]:
    """A device for batches of up to four images, as a worker opens it."""
    with FakeCuda(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            inference, "load_models", lambda _, name: (tiny_tokenizer(device=name), tiny_generator(device=name))
        )
        # Measured limits would depend on the speed of this machine.
        yield open_device(Settings(devices="auto"), known_limits=dict.fromkeys(("encode", "decode", "generate"), 4))


def shared_memory() -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, COUNT * 32 * 32 * 3), np.uint8).reshape(COUNT, 32, 32, 3)


@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
def test_batches_in_parts_have_the_ids_and_pixels_of_a_cpu(
    device: ModelDevice, images: np.ndarray, *, pinned: bool
) -> None:
    assert device.status()["graphs"] == {"encode": [1, 2, 4], "decode": [1, 2, 4], "generate": [1, 2, 4]}
    host = ModelDevice(tiny_tokenizer(), None)
    given, taken = shared_memory(), shared_memory()
    if pinned:
        device.pin(given)
        device.pin(taken)
    for count in (COUNT, 1, 3):
        given[:] = images[::-1] if count == 3 else images
        ids = device.encode(given[:count])
        assert (ids == host.encode(given[:count])).all()
        device.decode(ids, out=taken[:count])
        assert np.abs(taken[:count].astype(int) - host.decode(ids)).max() <= 1


def test_sampling_steps_have_the_tokens_of_a_cpu(device: ModelDevice) -> None:
    host = ModelDevice(tiny_tokenizer(), tiny_generator())
    settings = tiny_generator().settings(guidance_scale=3.0)
    rows = [
        RowState(label=seed % 5 if seed % 2 else None, seed=seed, settings=settings, step=0, tokens=None)
        for seed in range(7)
    ]
    assert (device.step(rows).tokens == host.step(rows).tokens).all()


def test_a_vae_has_the_latents_and_pixels_of_a_cpu(images: np.ndarray) -> None:
    with FakeCuda(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            inference, "load_models", lambda _, name: (tiny_tokenizer(quantize_mode="vae", device=name), None)
        )
        device = open_device(Settings(devices="auto"), known_limits={"encode": 4, "decode": 4})
        assert device.status()["graphs"] == {"encode": [1, 2, 4], "decode": [1, 2, 4]}
        host = ModelDevice(tiny_tokenizer(quantize_mode="vae"), None)
        moments = device.latents(images)
        assert np.allclose(moments, host.latents(images), atol=1e-5)
        latents = device.info.latent_format.latents_of(moments)
        assert np.abs(device.decode(latents).astype(int) - host.decode(latents)).max() <= 1


def test_codes_of_mixed_lengths_share_a_pass_and_have_the_pixels_of_a_cpu() -> None:
    ids = np.random.default_rng(0).integers(0, 64, (COUNT, 16))
    codes = np.where(np.arange(16) < np.array([16, 3, 8, 16, 1, 2, 8, 16, 16, 5, 4])[:, None], ids, PAD)
    host = ModelDevice(tiny_tokenizer(min_tokens=1), None)
    with FakeCuda(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "load_models", lambda _, name: (tiny_tokenizer(min_tokens=1, device=name), None))
        device = open_device(Settings(devices="auto"), known_limits={"encode": 4, "decode": 4})
        taken = shared_memory()
        device.pin(taken)
        for rows in (slice(None), slice(0, 4), slice(4, 5)):
            decoded = device.decode(codes[rows], out=taken[rows]).astype(int)
            assert np.abs(decoded - host.decode(codes[rows])).max() <= 1


def test_latents_of_codes_run_without_a_graph(device: ModelDevice, images: np.ndarray) -> None:
    assert np.allclose(device.latents(images), ModelDevice(tiny_tokenizer(), None).latents(images), atol=1e-5)
