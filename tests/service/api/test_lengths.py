"""Codes of any length over HTTP, with a prefix-decodable tokenizer; and the refusals of one that is not."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.codes.code_format import CodeFormat
from models.codes.packed import PackedCodes
from service.client import AsyncTiTokClient
from service.inference.device import ModelDevice
from tests.service.api.test_overload import PNG, HeldDevice
from tests.service.application import app_of, service
from tests.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.anyio

RAW, PACKED = "application/octet-stream", "application/vnd.titok.codes"
PIXELS = {"Accept": RAW}


class PrefixDevice(ModelDevice):
    """16 ids of 64 codes, one character each; counts the images that it encodes."""

    def __init__(self) -> None:
        super().__init__(tiny_tokenizer(min_tokens=1), None)
        self.release = threading.Event()
        self.encoded = 0

    def encode(self, images: np.ndarray) -> np.ndarray:
        self.encoded += len(images)
        return super().encode(images)


@pytest.fixture(scope="module")
def device() -> PrefixDevice:
    return PrefixDevice()


@pytest.fixture
async def client(device: PrefixDevice) -> AsyncIterator[httpx.AsyncClient]:
    device.encoded = 0
    async with service(device) as client:
        yield client


def photograph(seed: int = 0) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse.repeat(8, axis=0).repeat(8, axis=1)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


async def encode(client: httpx.AsyncClient, query: str = "") -> dict[str, Any]:
    answer = await client.post(f"/v1/encode{query}", content=photograph(), headers=PNG)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def pixels(client: httpx.AsyncClient, **body: object) -> bytes:
    answer = await client.post("/v1/decode", json=body, headers=PIXELS)
    assert answer.status_code == 200, answer.text
    return answer.content


async def test_a_shorter_code_is_cut_from_the_cached_one(client: httpx.AsyncClient, device: PrefixDevice) -> None:
    whole = (await encode(client))["data"][0]
    for length in (1, 5, 16):
        document = await encode(client, f"?length={length}")
        [item] = document["data"]
        assert document["num_tokens"] == len(item["tokens"]) == length
        assert (item["tokens"], item["code"]) == (whole["tokens"][:length], whole["code"][:length])
        assert item["cached"]
    assert device.encoded == 1


async def test_every_cut_of_a_code_decodes_by_all_routes(client: httpx.AsyncClient, device: PrefixDevice) -> None:
    [item] = (await encode(client))["data"]
    for length in (1, 5, 16):
        code = item["code"][:length]
        expected = device._tokenizer.decode(np.array([item["tokens"][:length]])).numpy().tobytes()
        assert await pixels(client, code=code) == expected
        assert await pixels(client, tokens=item["tokens"][:length]) == expected
        reconstructed = await client.post(f"/v1/reconstruct?length={length}", content=photograph(), headers=PNG)
        assert reconstructed.json()["code"] == code
        assert reconstructed.json()["code_bytes"] == -(-length * 6 // 8)
        info = device.info
        image = await client.get(f"/v1/images/{info.name}@{info.revision}/{code}.png")
        assert np.asarray(Image.open(io.BytesIO(image.content))).tobytes() == expected
        for media_type in (RAW, PACKED):
            packed = await client.post(
                f"/v1/encode?length={length}", content=photograph(), headers={**PNG, "Accept": media_type}
            )
            decoded = await client.post(
                f"/v1/decode?length={length}",
                content=packed.content,
                headers={**PIXELS, "Content-Type": media_type},
            )
            assert decoded.content == expected
    assert device.encoded == 1


async def test_a_request_may_mix_lengths(client: httpx.AsyncClient) -> None:
    code = (await encode(client))["data"][0]["code"]
    codes = [code[:length] for length in (3, 16, 1)]
    answer = await client.post("/v1/decode", json={"codes": codes, "format": "png"})
    files = [item["b64"] for item in answer.json()["data"]]
    alone = [
        (
            await client.post(
                "/v1/decode", json={"codes": [each], "format": "png"}, headers={"Accept": "application/json"}
            )
        )
        for each in codes
    ]
    assert files == [each.json()["data"][0]["b64"] for each in alone]
    assert len(set(files)) == 3
    registry = app_of(client).state.api.metrics.registry
    assert registry.get_sample_value("titok_code_tokens_bucket", {"op": "decode", "le": "4.0"}) == 4


async def test_a_mix_is_as_long_as_the_shortest_of_its_images(client: httpx.AsyncClient) -> None:
    mixed = (await client.post("/v1/mix", json={"codes": ["AAAAAA", "____"], "positions": [0, 1, 0, 1]})).json()
    assert (mixed["tokens"], mixed["code"]) == ([0, 63, 0, 63], "A_A_")
    wrong = await client.post("/v1/mix", json={"codes": ["AAAAAA", "____"], "positions": [0] * 6})
    assert (wrong.status_code, wrong.json()["errors"][0]["expected"]) == (422, "4 entries")


@pytest.mark.parametrize("length", ["0", "17", "-1", "1.5", "eight", "", "1&length=2", "99999999999"])
async def test_a_length_that_no_code_has_is_refused(client: httpx.AsyncClient, length: str) -> None:
    for path in ("encode", "reconstruct"):
        refused = await client.post(f"/v1/{path}?length={length}", content=photograph(), headers=PNG)
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        assert (error["pointer"], error["expected"]) == ("query/length", "1 to 16 tokens")
    refused = await client.post(f"/v1/decode?length={length}", content=b"abc", headers={"Content-Type": RAW})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "query/length")


def packed_file(info: Any, tokens: int, codes: int = 64) -> bytes:
    file = PackedCodes(info.name, info.revision, CodeFormat(tokens, codes), np.zeros((2, tokens), np.int64))
    return file.to_bytes()


async def test_packed_codes_of_other_lengths_are_refused(client: httpx.AsyncClient, device: PrefixDevice) -> None:
    info = device.info
    for content, message in [
        (packed_file(info, 17), "1 to 16 token ids, not 17"),
        (packed_file(info, 8, 4096), "V in the header is not that of this tokenizer"),
        (packed_file(info, 8) + bytes(12), "2 images of 8 tokens each, 12 bytes; 24 bytes follow it"),
    ]:
        refused = await client.post("/v1/decode", content=content, headers={"Content-Type": PACKED})
        assert (refused.status_code, message in refused.json()["detail"]) == (422, True), refused.text
    refused = await client.post("/v1/decode?length=8", content=bytes(7), headers={"Content-Type": RAW})
    assert "whole groups of 6 bytes, not 7" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"tokens": []}, "at least one entry"),
        ({"tokens": [[1], []]}, "/tokens/1: an image has 1 to 16 token ids, not 0"),
        ({"tokens": [0] * 17}, "1 to 16 token ids, not 17"),
        ({"tokens": [1, -1]}, "/tokens/1: token id out of range"),
        ({"code": ""}, "1 to 16 characters, not 0"),
        ({"code": "A" * 17}, "1 to 16 characters, not 17"),
    ],
)
async def test_tokens_and_codes_of_no_length_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], message: str
) -> None:
    refused = await client.post("/v1/decode", json=body)
    assert (refused.status_code, message in refused.json()["detail"]) == (422, True), refused.text


async def test_a_tokenizer_that_is_not_prefix_decodable_refuses_shorter_codes() -> None:
    device = HeldDevice()
    device.release.set()
    async with service(device) as client:
        [model] = (await client.get("/v1/models")).json()["data"]
        assert (model["num_tokens"], model["min_tokens"], model["prefix_decodable"]) == (4, 4, False)
        assert (await client.post("/v1/encode?length=4", content=photograph(), headers=PNG)).status_code == 200
        for refused in (
            await client.post("/v1/encode?length=2", content=photograph(), headers=PNG),
            await client.post("/v1/decode", json={"tokens": [1, 2]}),
            await client.post("/v1/decode", json={"code": "AQI"}),
            await client.get("/v1/images/held@1/AQI.png"),
            await client.post("/v1/decode?length=2", content=b"ab", headers={"Content-Type": RAW}),
        ):
            assert refused.status_code == 422
            assert "not prefix-decodable" in refused.json()["detail"]


async def test_a_code_cut_inside_a_token_is_refused() -> None:
    device = HeldDevice()
    device.release.set()
    device.info = replace(device.info, codes=CodeFormat(4, 4096, 1))
    async with service(device) as client:
        assert (await client.post("/v1/decode", json={"code": "AAAB"}, headers=PIXELS)).status_code == 200
        refused = await client.post("/v1/decode", json={"code": "AAA"})
        assert (
            "a code of 3 characters ends inside a token: the first 1 have 2 characters, the first 2 have 4"
            in refused.json()["detail"]
        )


async def test_the_client_asks_for_a_length_with_every_call(client: httpx.AsyncClient, device: PrefixDevice) -> None:
    titok, image = AsyncTiTokClient("http://test", http=client), photograph()
    whole = await titok.encode(image)
    for lookup_first in (False, True):
        one = await titok.encode(image, length=5, lookup_first=lookup_first)
        several = await titok.encode([image, photograph(1)], length=5, lookup_first=lookup_first)
        assert (one.code, several[0].tokens) == (whole.code[:5], whole.tokens[:5])
    assert (await titok.reconstruct(image, length=5)).code == whole.code[:5]
    pictures = await titok.decode([whole, one])
    assert pictures[1] == await titok.decode(one)
    assert pictures[0] == await titok.decode(whole) != pictures[1]
    assert (await titok.models())[0].min_tokens == 1
    assert device.encoded == 2
