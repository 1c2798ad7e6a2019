"""Latents over HTTP: a VAE's tokens, and the vectors before quantization of other tokenizers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models import Tokenizer
from models.codes.latents import to_npy
from service.api.schemas.images import ReconstructLatentsResponse
from service.api.schemas.tokens import LatentsResponse
from service.cache import CachedCode, KeySpace
from service.inference.device import ModelDevice
from tests.service.application import app_of, service
from tests.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.anyio

PNG, NPY, OCTETS = "image/png", "application/x-npy", "application/octet-stream"
JSON = "application/json"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
NEAR = {"atol": 1e-5}  # batches differ by rounding


class Device(ModelDevice):
    """Counts the images that it encodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, None, max_batch_size=8)
        self.release = threading.Event()
        self.encoded = 0

    def latents(self, images: np.ndarray) -> np.ndarray:
        self.encoded += len(images)
        return super().latents(images)


@pytest.fixture(scope="module")
def vae() -> Tokenizer:
    return tiny_tokenizer(quantize_mode="vae")


@pytest.fixture
async def client(vae: Tokenizer) -> AsyncIterator[httpx.AsyncClient]:
    async with service(Device(vae)) as client:
        yield client


@asynccontextmanager
async def vq_service(tokenizer: Tokenizer) -> AsyncIterator[httpx.AsyncClient]:
    async with service(Device(tokenizer)) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def encode(client: httpx.AsyncClient, query: str = "", *, accept: str = NPY, images: int = 1) -> httpx.Response:
    if images == 1:
        return await client.post(
            f"/v1/encode{query}", content=png(PIXELS[0]), headers={"Content-Type": PNG, "Accept": accept}
        )
    files = [("image", (f"{index}.png", png(PIXELS[index]))) for index in range(images)]
    return await client.post(f"/v1/encode{query}", files=files, headers={"Accept": accept})


def from_npy(answer: httpx.Response) -> np.ndarray:
    assert answer.headers["content-type"] == NPY
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


async def test_a_vae_answers_the_mean_as_npy_raw_and_json(client: httpx.AsyncClient, vae: Tokenizer) -> None:
    expected = vae.latents(PIXELS).numpy()
    array = from_npy(await encode(client))
    assert (array.dtype, array.shape) == (np.float32, (16, 5))
    assert np.allclose(array, expected[0], **NEAR)
    raw = await encode(client, "?dtype=float16", accept=OCTETS, images=3)
    assert (raw.headers["x-shape"], raw.headers["x-dtype"]) == ("3,16,5", "float16")
    assert raw.headers["x-titok-model"] == "tiny"
    halves = np.frombuffer(raw.content, "<f2").reshape(3, 16, 5)
    assert (halves[0] == array.astype(np.float16)).all()
    answer = await encode(client, "?latents=true", accept=JSON, images=3)
    document = LatentsResponse.model_validate_json(answer.content)
    assert (document.shape, document.dtype) == ((16, 5), "float32")
    assert [item.cached for item in document.data] == [True] * 3
    rows = [np.frombuffer(base64.b64decode(item.latents), "<f4").reshape(16, 5) for item in document.data]
    assert (rows[0] == array).all()
    assert (np.stack(rows).astype(np.float16) == halves).all()


async def test_one_cached_entry_answers_every_seed_and_format(client: httpx.AsyncClient, vae: Tokenizer) -> None:
    queries = ("", "?seed=7", "?seed=7&dtype=float16", f"?seed={2**63 - 1}", "?seed=8")
    mean, seven, half, last, eight = [from_npy(await encode(client, query)) for query in queries]
    assert np.allclose(seven, vae.latents(PIXELS[:1], seeds=[7]).numpy()[0], **NEAR)
    assert (half == seven.astype(np.float16)).all()
    assert len({array.tobytes() for array in (mean, seven, last, eight)}) == 4
    several = from_npy(await encode(client, "?seed=7", images=2))  # image i has the seed 7 + i
    assert (several[0] == seven).all()
    assert np.allclose(several[1], vae.latents(PIXELS[1:2], seeds=[8]).numpy()[0], **NEAR)
    registry = app_of(client).state.api.metrics.registry
    assert registry.get_sample_value("titok_cache_requests_total", {"result": "miss"}) == 2


def bodies(latents: np.ndarray) -> dict[str, dict[str, Any]]:
    """The requests that decode an image's latents."""
    raw, half = latents.astype("<f4"), latents.astype("<f2")
    text = base64.b64encode(half.tobytes()).decode()
    return {
        "npy": {"content": to_npy(raw), "headers": {"Content-Type": NPY}},
        "npy of a batch": {"content": to_npy(half[None]), "headers": {"Content-Type": NPY}},
        "raw": {
            "content": raw.tobytes(),
            "headers": {"Content-Type": OCTETS, "X-Dtype": "float32", "X-Shape": "16, 5"},
        },
        "raw half": {"content": half.tobytes(), "headers": {"Content-Type": OCTETS, "X-Dtype": "float16"}},
        "json": {"json": {"latents": [text], "dtype": "float16", "shape": [16, 5]}},
    }


async def test_every_form_of_latents_is_decoded_to_the_same_image(client: httpx.AsyncClient, vae: Tokenizer) -> None:
    latents = from_npy(await encode(client, "?dtype=float16")).astype(np.float32)
    expected = vae.decode(latents[None]).numpy()[0]
    for name, body in bodies(latents).items():
        headers = body.get("headers", {}) | {"Accept": NPY}
        answer = await client.post("/v1/decode", **{**body, "headers": headers})
        assert answer.status_code == 200, (name, answer.text)
        assert np.abs(from_npy(answer).astype(int) - expected).max() <= 1
    several = await client.post(
        "/v1/decode",
        content=to_npy(np.stack([latents] * 2)),
        headers={"Content-Type": NPY, "Accept": JSON, "X-Titok-Model": "tiny"},
    )
    assert len(several.json()["data"]) == 2


async def test_a_vae_reconstructs_with_latents(client: httpx.AsyncClient, vae: Tokenizer) -> None:
    for query, seeds in (("", None), ("?seed=3&dtype=float16", [3])):
        answer = await client.post(f"/v1/reconstruct{query}", content=png(PIXELS[0]), headers={"Content-Type": PNG})
        document = ReconstructLatentsResponse.model_validate_json(answer.content)
        latents = np.frombuffer(base64.b64decode(document.latents), document.dtype).reshape(document.shape)
        assert np.allclose(latents, vae.latents(PIXELS[:1], seeds=seeds).numpy()[0], atol=1e-2)
        assert document.quality.ssim <= 1
    picture = await client.post(
        "/v1/reconstruct", content=png(PIXELS[0]), headers={"Content-Type": PNG, "Accept": "image/png"}
    )
    assert "x-titok-ssim" in picture.headers
    assert "x-titok-code" not in picture.headers


async def test_a_vae_is_described_and_refuses_codes_by_name(client: httpx.AsyncClient) -> None:
    [model] = (await client.get("/v1/models")).json()["data"]
    assert (model["kind"], model["num_tokens"], model["codebook_size"], model["code_bytes"]) == ("vae", 16, 0, 0)
    assert model["latents"] == {"shape": [16, 5], "dtypes": ["float32", "float16"]}
    digest = {"sha256": ["0" * 64]}
    for refused in (
        await client.get("/v1/images/tiny/AAAA.png"),
        await client.post("/v1/mix", json={"codes": ["AAAA", "AAAA"]}),
        await client.post("/v1/decode", json={"code": "AAAA"}),
        await client.post("/v1/decode", json={"tokens": [1] * 16}),
        await client.post("/v1/codes:lookup", json=digest),
        await client.get(f"/v1/codes/{digest['sha256'][0]}"),
        await encode(client, "?latents=false"),
    ):
        assert refused.status_code == 422
        assert "tiny is a VAE" in refused.json()["detail"]
    assert (await client.post("/v1/generate", json={"class": 1})).status_code == 404
    assert (await encode(client, accept="application/vnd.titok.codes")).status_code == 406


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("?latents=yes", "query/latents"),
        ("?dtype=float64", "query/dtype"),
        ("?seed=-1", "query/seed"),
        ("?seed=1e3", "query/seed"),
        (f"?seed={2**63}", "query/seed"),
        ("?seed=" + "9" * 5000, "query/seed"),
    ],
)
async def test_options_out_of_range_are_refused(client: httpx.AsyncClient, query: str, pointer: str) -> None:
    refused = await encode(client, query)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer


async def test_the_last_image_has_a_seed_too(client: httpx.AsyncClient) -> None:
    refused = await encode(client, f"?seed={2**63 - 1}", images=2)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "query/seed")


ZEROS = np.zeros((16, 5), np.float32)
TEXT = base64.b64encode(ZEROS.tobytes()).decode()


@pytest.mark.parametrize(
    "body",
    [
        {"content": to_npy(ZEROS[:, :4]), "headers": {"Content-Type": NPY}},
        {"content": to_npy(np.full_like(ZEROS, np.inf)), "headers": {"Content-Type": NPY}},
        {"content": b"\x93NUMPY", "headers": {"Content-Type": NPY}},
        {"content": b"", "headers": {"Content-Type": NPY}},
        {"content": ZEROS.tobytes(), "headers": {"Content-Type": OCTETS}},
        {"content": ZEROS.tobytes(), "headers": {"Content-Type": OCTETS, "X-Dtype": "float64"}},
        {"content": ZEROS.tobytes(), "headers": {"Content-Type": OCTETS, "X-Dtype": "float32", "X-Shape": "5,16"}},
        {"content": ZEROS.tobytes()[1:], "headers": {"Content-Type": OCTETS, "X-Dtype": "float32"}},
        {"json": {"latents": [TEXT]}},
        {"json": {"latents": [TEXT], "dtype": "float64"}},
        {"json": {"latents": [TEXT], "dtype": "float16"}},  # two images in one entry
        {"json": {"latents": [TEXT[:-4]], "dtype": "float32"}},
        {"json": {"latents": ["?"], "dtype": "float32"}},
        {"json": {"latents": ["é"], "dtype": "float32"}},
        {"json": {"latents": [""], "dtype": "float32"}},
        {"json": {"latents": [], "dtype": "float32"}},
        {"json": {"latents": TEXT, "dtype": "float32"}},
        {"json": {"latents": [TEXT], "dtype": "float32", "shape": [5, 16]}},
        {"json": {"latents": [TEXT], "dtype": "float32", "code": "AAAA"}},
        {"json": {"dtype": "float32"}},
        {"json": {"code": "AAAA", "dtype": "float32"}},
        {"content": to_npy(ZEROS), "headers": {"Content-Type": NPY}, "params": {"length": 4}},
    ],
)
async def test_other_latents_are_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    refused = await client.post("/v1/decode", **body)
    assert refused.status_code == 422, refused.text
    assert refused.headers["content-type"] == "application/problem+json"


async def test_too_many_latents_and_those_of_another_model_are_refused(client: httpx.AsyncClient) -> None:
    many = await client.post(
        "/v1/decode", content=to_npy(np.zeros((65, 16, 5), np.float32)), headers={"Content-Type": NPY}
    )
    assert many.status_code == 413
    many = await client.post("/v1/decode", json={"latents": [TEXT] * 65, "dtype": "float32"})
    assert many.status_code == 413
    other = {"Content-Type": NPY, "X-Titok-Model": "other"}
    assert (await client.post("/v1/decode", content=to_npy(ZEROS), headers=other)).status_code == 404


async def test_a_codebook_tokenizer_gives_its_vectors_before_quantization_too() -> None:
    tokenizer = tiny_tokenizer()
    async with vq_service(tokenizer) as client:
        array = from_npy(await encode(client, "?latents=true"))
        assert np.allclose(array, tokenizer.latents(PIXELS[:1]).numpy()[0], **NEAR)
        document = (await encode(client, accept=JSON)).json()
        assert document["data"][0]["tokens"] == tokenizer.encode(PIXELS[:1])[0].tolist()
        assert not document["data"][0]["cached"]  # latents and codes have keys of their own
        assert (await encode(client, "?latents=true", accept=JSON)).json()["data"][0]["cached"]
        [model] = (await client.get("/v1/models")).json()["data"]
        assert (model["kind"], model["latents"]["shape"]) == ("vq", [16, 5])
        for refused in (
            await encode(client, "?latents=true&seed=1"),
            await encode(client, "?latents=true&length=8"),
            await encode(client, "?seed=1", accept=JSON),
            await encode(client, "?latents=false&dtype=float16", accept=JSON),
            await client.post("/v1/decode", json={"latents": [TEXT], "dtype": "float32"}),
        ):
            assert refused.status_code == 422
        assert (await encode(client, "?latents=true", accept="application/vnd.titok.codes")).status_code == 406
        raw = await client.post("/v1/decode", content=to_npy(ZEROS), headers={"Content-Type": NPY})
        assert raw.status_code == 415


async def test_cached_bytes_that_are_no_latents_are_a_miss(client: httpx.AsyncClient, vae: Tokenizer) -> None:
    state = app_of(client).state.api
    keys = KeySpace(state.settings.cache_namespace, "tiny", state.info.revision, latents=True)
    key = keys.upload(hashlib.sha256(png(PIXELS[0])).digest())
    await state.operations.cache.put_many([(key, CachedCode(bytes(48), (32, 32)))])
    assert np.allclose(from_npy(await encode(client)), vae.latents(PIXELS[:1]).numpy()[0], **NEAR)
    [entry] = await state.operations.cache.get_many([key])
    assert len(entry.code) == 4 * 16 * 10  # mean and log-variance


async def test_concurrent_requests_encode_an_image_once(vae: Tokenizer) -> None:
    device = Device(vae)
    async with service(device) as client:
        answers = await asyncio.gather(*(encode(client, f"?seed={seed}") for seed in range(8)))
        assert device.encoded == 1
        assert len({answer.content for answer in answers}) == 8
    async with service(Device(vae), cache="off") as client:
        assert np.allclose(from_npy(await encode(client)), vae.latents(PIXELS[:1]).numpy()[0], **NEAR)
