"""A VAE in a service of several processes, and what client and command line do with its latents."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from models import Tokenizer, load_tokenizer
from models.checkpoints.configuration import config_document
from service.cli.cache_warming import local_encoder, remote_encoder
from service.client import (
    AsyncTiTokClient,
    EncodedLatents,
    InvalidRequest,
    Latents,
    NotFound,
    TiTokClient,
    UnexpectedAnswer,
)
from service.settings import Settings
from tests.e2e.conftest import Server, end, start_server
from tests.in_process import run_in_process
from tests.tiny_models import tiny_network

pytestmark = pytest.mark.anyio

NEAR = {"atol": 1e-5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = tiny_network("vae")
    folder = tmp_path_factory.mktemp("vae")
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_document(network.config)))
    return folder


@pytest.fixture(scope="module")
def vae(weights: Path) -> Tokenizer:
    return load_tokenizer("tiny", weights=weights)


@pytest.fixture(scope="module")
def vae_server(weights: Path) -> Iterator[Server]:
    server = start_server(tokenizer="tiny", tokenizer_weights=str(weights), max_batch_size="4")
    server.wait_until_ready()
    yield server
    end(server)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (70, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def png(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "photo.png"
    Image.fromarray(pixels[0]).save(path)
    return path


def test_the_client_encodes_and_decodes_latents(vae_server: Server, vae: Tokenizer, pixels: np.ndarray) -> None:
    with TiTokClient(vae_server.url) as titok:
        encoded = titok.encode(pixels[0], latents=True)
        assert (encoded.shape, encoded.dtype, encoded.model) == ((16, 5), "float32", "tiny")
        assert np.allclose(encoded.array(), vae.latents(pixels[:1])[0], **NEAR)
        many = titok.encode(list(pixels), latents=True, dtype="float16", seed=3)  # two requests
        samples = np.stack([one.array() for one in many])
        assert samples.dtype == np.float16
        assert np.allclose(samples, vae.latents(pixels, seeds=range(3, 73)), atol=1e-2)
        expected = vae.decode(encoded.array()[None]).numpy()[0]
        alone = Latents(data=encoded.data, shape=encoded.shape, dtype=encoded.dtype)
        for source in (encoded, alone, encoded.array()):
            assert np.abs(titok.decode(source).array().astype(int) - expected).max() <= 2
        assert len(titok.decode(many)) == len(titok.decode(samples)) == 70
        assert titok.models()[0].kind == "vae"
        assert titok.reconstruct(pixels[0]).tokens == ()


def test_the_asyncio_client_does_the_same(vae_server: Server, pixels: np.ndarray) -> None:
    async def round_trip() -> tuple[EncodedLatents, int]:
        async with AsyncTiTokClient(vae_server.url) as titok:
            encoded, others = await asyncio.gather(
                titok.encode(pixels[0], latents=True), titok.encode(list(pixels[:3]), latents=True)
            )
            return encoded, len(await titok.decode([encoded, *others]))

    encoded, count = asyncio.run(round_trip())
    assert encoded.shape == (16, 5)
    assert count == 4


def test_what_a_vae_does_not_have_raises(vae_server: Server, pixels: np.ndarray) -> None:
    with TiTokClient(vae_server.url) as titok:
        with pytest.raises(UnexpectedAnswer, match="encode with latents=True"):
            titok.encode(pixels[0])
        with pytest.raises(InvalidRequest, match="tiny is a VAE"):
            titok.mix(["AAAA", "AAAA"])
        with pytest.raises(NotFound, match="tiny"):
            titok.generate("cat")
        halves = titok.encode(pixels[1], latents=True, dtype="float16")
        with pytest.raises(ValueError, match="different shapes or number formats"):
            titok.decode([halves, titok.encode(pixels[1], latents=True)])
        with pytest.raises(TypeError, match="or latents"):
            titok.decode([halves, "AAAA"])


@pytest.mark.parametrize("where", ["here", "at a service"])
def test_the_command_line_writes_and_reads_npy(
    vae_server: Server, vae: Tokenizer, weights: Path, png: Path, tmp_path: Path, where: str
) -> None:
    options = ("--url", vae_server.url) if where == "at a service" else ("--tokenizer", "tiny", "--weights", weights)
    ended = run_in_process("encode", png, png, "--latents", tmp_path / "two.npy", "--seed", "5", *options)
    assert ended.returncode == 0, ended.stderr
    samples = np.load(tmp_path / "two.npy")
    picture = np.asarray(Image.open(png))
    assert np.allclose(samples, vae.latents(np.stack([picture] * 2), seeds=[5, 6]), **NEAR)
    np.save(tmp_path / "one.npy", samples[0])
    assert run_in_process("decode", tmp_path / "one.npy", tmp_path / "back.png", *options).returncode == 0
    back = np.asarray(Image.open(tmp_path / "back.png")).astype(int)
    assert np.abs(back - vae.decode(samples[:1]).numpy()[0]).max() <= 2
    several = run_in_process("decode", tmp_path / "two.npy", tmp_path / "back.png", *options)
    assert (several.returncode, b"of one image are expected" in several.stderr) == (1, True)
    result = run_in_process("reconstruct", png, tmp_path / "kept.png", *options)
    assert (result.returncode, b"code" in result.stdout) == (0, False)


def test_a_vae_here_has_no_codes(weights: Path, png: Path) -> None:
    ended = run_in_process("encode", png, "--tokenizer", "tiny", "--weights", weights)
    assert ended.returncode == 1
    assert b"use --latents FILE.npy" in ended.stderr
    assert run_in_process("encode", png, "--seed", "5").returncode == 1


def test_a_data_set_is_tokenized_by_the_command(weights: Path, vae: Tokenizer, png: Path, tmp_path: Path) -> None:
    options = ("--tokenizer", "tiny", "--weights", weights, "--device", "cpu", "--format", "npy")
    refused = run_in_process("tokenize", png.parent, tmp_path / "out", *options)
    assert (refused.returncode, b"titok tokenize has --latents" in refused.stderr) == (1, True)
    ended = run_in_process("tokenize", png.parent, tmp_path / "out", "--latents", "float16", *options)
    assert ended.returncode == 0, ended.stderr
    latents = np.load(tmp_path / "out" / "latents-000000.npy")
    assert np.allclose(latents, vae.latents(np.asarray(Image.open(png))[None]), atol=1e-2)


@pytest.mark.parametrize("where", ["here", "at a service"])
async def test_latents_are_cached_in_advance(vae_server: Server, weights: Path, png: Path, where: str) -> None:
    image = png.read_bytes()  # noqa: ASYNC240  a small file
    settings = Settings(
        tokenizer="tiny", tokenizer_weights=str(weights), cache="memory", generator="off", devices="cpu"
    )
    here = local_encoder(settings)
    there = remote_encoder(vae_server.url, api_key=None, concurrency=1)
    async with here if where == "here" else there as encoder:
        await encoder.encode(image)
        # A service is asked again: it has no look-ups of latents.
        assert await encoder.are_cached([hashlib.sha256(image).digest()]) == [where == "here"]
    if where == "at a service":
        async with AsyncTiTokClient(vae_server.url) as titok:
            assert (await titok.encode(image, latents=True)).cached
