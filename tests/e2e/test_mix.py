"""Mixing on a real server."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models import load_tokenizer
from models.codes.code_format import CodeFormat
from service.client import Encoded, InvalidRequest, TiTokClient
from tests.e2e.conftest import Server

CODES = CodeFormat(32, 4096)


@pytest.fixture(scope="module")
def pair(server: Server, photographs: list[Image.Image]) -> list[Encoded]:
    with TiTokClient(server.url) as titok:
        return titok.encode(photographs[:2])


def mix(client: httpx.Client, pair: list[Encoded], accept: str = "application/json", **body: Any) -> httpx.Response:
    return client.post("/v1/mix", json={"codes": [one.code for one in pair], **body}, headers={"Accept": accept})


def test_an_image_between_two_is_nearest_to_the_mean_of_their_codes(client: httpx.Client, pair: list[Encoded]) -> None:
    document = mix(client, pair, weights=[0.5, 0.5]).json()
    codebook = load_tokenizer("titok-mini-32").codebook.numpy().astype(np.float64)
    for position, token in enumerate(document["tokens"]):
        mean = (codebook[pair[0].tokens[position]] + codebook[pair[1].tokens[position]]) / 2
        distances = np.square(codebook - mean).sum(1)
        assert distances[token] == pytest.approx(distances.min(), abs=1e-9)
    assert CODES.from_text([document["code"]])[0].tolist() == document["tokens"]
    assert document["revision"] == pair[0].revision


def test_the_ends_of_a_slider_are_the_images_themselves(client: httpx.Client, pair: list[Encoded]) -> None:
    assert mix(client, pair, weights=[1, 0]).json()["code"] == pair[0].code
    assert mix(client, pair, weights=[0, 1]).json()["code"] == pair[1].code


def test_tokens_are_taken_from_the_image_that_positions_name(client: httpx.Client, pair: list[Encoded]) -> None:
    positions = [0] * 16 + [1] * 15 + [None]
    tokens = mix(client, pair, positions=positions, weights=[1, 0]).json()["tokens"]
    assert tokens == [*pair[0].tokens[:16], *pair[1].tokens[16:31], pair[0].tokens[31]]


def test_the_answer_is_a_picture_or_a_packed_code_where_accept_asks_for_it(
    client: httpx.Client, pair: list[Encoded]
) -> None:
    code = mix(client, pair).json()["code"]
    picture = mix(client, pair, accept="image/webp")
    assert Image.open(io.BytesIO(picture.content)).format == "WEBP"
    packed = mix(client, pair, accept="application/octet-stream")
    assert picture.headers["x-titok-code"] == packed.headers["x-titok-code"] == code
    assert CODES.to_text(CODES.from_bytes(packed.content))[0] == code


def test_the_client_mixes_results_of_any_kind(server: Server, pair: list[Encoded]) -> None:
    with TiTokClient(server.url) as titok:
        (cat,) = titok.generate("cat", seed=1, preset="fast")
        result = titok.mix([pair[0], cat], weights=[0, 1], format="webp")
        assert (result.tokens, result.model) == (cat.tokens, cat.model)
        assert result.picture.image().format == "WEBP"
        with pytest.raises(InvalidRequest):
            titok.mix([pair[0], cat], weights=[1, 2, 3])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"weights": [1]}, "/weights"),
        ({"weights": [0, 0]}, "/weights"),
        ({"weights": [1, -1]}, "/weights/1"),
        ({"weights": [1, "1"]}, "/weights/1"),
        ({"positions": [0]}, "/positions"),
        ({"positions": [0] * 31 + [2]}, "/positions/31"),
        ({"positions": [0] * 31 + [-1]}, "/positions/31"),
        ({"positions": [0] * 31 + [0.5]}, "/positions/31"),
        ({"codes": []}, "/codes"),
        ({"tokens": [[1]]}, ""),
        ({"weight": [1, 1]}, "/weight"),
    ],
    ids=str,
)
def test_a_misfit_is_refused_with_its_position(
    client: httpx.Client, pair: list[Encoded], body: dict[str, Any], pointer: str
) -> None:
    refused = mix(client, pair, **body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer


def test_text_in_place_of_a_number_is_refused(client: httpx.Client, pair: list[Encoded]) -> None:
    for number in ("NaN", "Infinity", "1e999"):
        content = f'{{"codes": ["{pair[0].code}", "{pair[1].code}"], "weights": [1, {number}]}}'
        answer = client.post("/v1/mix", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)


def test_codes_of_another_tokenizer_and_other_bodies_are_refused(client: httpx.Client, pair: list[Encoded]) -> None:
    assert mix(client, pair, revision="another").status_code == 409
    assert mix(client, pair, model="another").status_code == 404
    assert mix(client, pair, accept="text/html").status_code == 406
    assert mix(client, pair * 40).status_code == 413
    assert client.post("/v1/mix", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
