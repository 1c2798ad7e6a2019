"""The API as its users call it, on a real server."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models import load_generator, load_tokenizer
from models.codes import packed as packed_codes
from models.codes.code_format import CodeFormat
from models.codes.packed import PackedCodes
from models.preprocess import eval_crop
from models.preprocessing_options import PreprocessingOptions
from service.api.schemas.base import EXAMPLE_REVISION
from tests.e2e.conftest import Server

ROOT = Path(__file__).parents[2]
MODEL = "titok-mini-32"
CODES = CodeFormat(32, 4096)


@pytest.fixture(scope="module")
def encoded(client: httpx.Client, jpeg: bytes) -> dict[str, Any]:
    answer = client.post("/v1/encode", content=jpeg, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_an_image_has_the_tokens_that_the_library_computes(encoded: dict[str, Any], jpeg: bytes) -> None:
    tokenizer = load_tokenizer(MODEL)
    pixels = eval_crop(opened(jpeg).convert("RGB"), tokenizer.image_size)
    assert encoded["data"][0]["tokens"] == tokenizer.encode(pixels[None])[0].tolist()
    assert encoded["revision"] == PreprocessingOptions(color="srgb", jpeg_scale="auto").revision_of(tokenizer.revision)
    assert (encoded["model"], encoded["num_tokens"], encoded["codebook_size"]) == (MODEL, 32, 4096)
    assert encoded["data"][0]["original_size"] == {"width": 512, "height": 512}


def test_the_code_is_64_characters_that_hold_the_tokens(encoded: dict[str, Any]) -> None:
    item = encoded["data"][0]
    assert len(item["code"]) == 64
    assert CODES.from_text([item["code"]])[0].tolist() == item["tokens"]


def test_raw_form_and_json_uploads_give_the_same_tokens(
    client: httpx.Client, encoded: dict[str, Any], jpeg: bytes
) -> None:
    text = base64.b64encode(jpeg).decode()
    for request in (
        {"content": jpeg, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"image": ("photo.jpg", jpeg, "image/jpeg")}},
        {"json": {"image": text}},
        {"json": {"images": [f"data:image/jpeg;base64,{text}"]}},
    ):
        answer = client.post("/v1/encode", **request)  # type: ignore[arg-type]
        assert answer.json()["data"][0]["tokens"] == encoded["data"][0]["tokens"]


def test_many_images_are_answered_in_order_with_the_tokens_of_single_ones(
    client: httpx.Client, serve: Callable[..., Server], photographs: list[Image.Image]
) -> None:
    forgetful = serve(cache="off")
    forgetful.wait_until_ready()
    files = []
    for photograph in photographs:
        buffer = io.BytesIO()
        photograph.save(buffer, "PNG")
        files.append(buffer.getvalue())
    together = client.post("/v1/encode", files=[("image", (f"{i}.png", f, "image/png")) for i, f in enumerate(files)])
    assert [item["index"] for item in together.json()["data"]] == list(range(len(files)))
    for item, file in zip(together.json()["data"], files, strict=True):
        alone = httpx.post(
            f"{forgetful.url}/v1/encode", content=file, headers={"Content-Type": "image/png"}, timeout=60
        )
        assert alone.json()["data"][0]["cached"] is False
        assert alone.json()["data"][0]["tokens"] == item["tokens"]


def test_the_same_bytes_again_come_from_the_cache(client: httpx.Client, encoded: dict[str, Any], jpeg: bytes) -> None:
    again = client.post("/v1/encode", content=jpeg, headers={"Content-Type": "image/jpeg"}).json()
    assert again["data"][0]["cached"] is True
    assert {**again["data"][0], "cached": None} == {**encoded["data"][0], "cached": None}


def test_the_same_picture_in_another_container_comes_from_the_cache(
    client: httpx.Client, photographs: list[Image.Image]
) -> None:
    picture = photographs[2].crop((0, 0, 300, 200))  # of this test alone
    answers = []
    for options in ({"format": "PNG"}, {"format": "TIFF"}, {"format": "TIFF"}, {"format": "PNG", "compress_level": 1}):
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        media_type = f"image/{options['format'].lower()}"
        answer = client.post("/v1/encode", content=buffer.getvalue(), headers={"Content-Type": media_type})
        answers.append(answer.json()["data"][0])
    assert [answer["cached"] for answer in answers] == [False, True, True, True]
    assert len({answer["code"] for answer in answers}) == 1
    assert {tuple(answer["original_size"].values()) for answer in answers} == {(300, 200)}


def test_packed_codes_go_out_and_in(client: httpx.Client, encoded: dict[str, Any], jpeg: bytes) -> None:
    packed = client.post(
        "/v1/encode",
        files=[("a", ("a.jpg", jpeg)), ("b", ("b.jpg", jpeg))],
        headers={"Accept": "application/octet-stream"},
    )
    assert len(packed.content) == 96
    assert packed.headers["x-titok-revision"] == encoded["revision"]
    assert CODES.from_bytes(packed.content)[1].tolist() == encoded["data"][0]["tokens"]
    images = client.post(
        "/v1/decode", content=packed.content, headers={"Content-Type": "application/octet-stream", "Accept": "*/*"}
    )
    assert [item["content_type"] for item in images.json()["data"]] == ["image/jpeg"] * 2


def test_a_file_of_packed_codes_names_its_tokenizer(client: httpx.Client, encoded: dict[str, Any], jpeg: bytes) -> None:
    accept = {"Accept": packed_codes.MEDIA_TYPE}
    packed = client.post("/v1/encode", files=[("a", jpeg), ("b", jpeg)], headers=accept)
    assert packed.headers["content-type"] == packed_codes.MEDIA_TYPE
    codes = PackedCodes.from_bytes(packed.content)
    assert (codes.tokenizer, codes.revision, codes.code_format) == (MODEL, encoded["revision"], CODES)
    assert codes.tokens.tolist() == [encoded["data"][0]["tokens"]] * 2
    # The header is recognised however the body is labelled, and another tokenizer's codes are no pixels here.
    for media_type in (packed_codes.MEDIA_TYPE, "application/octet-stream"):
        for file, status in (
            (codes, 200),
            (replace(codes, tokenizer="titok-l-32"), 404),
            (replace(codes, revision="other"), 409),
            (replace(codes, code_format=CodeFormat(16, 4096), tokens=codes.tokens[:, :16]), 200),
            (replace(codes, code_format=CodeFormat(32, 8192)), 422),
        ):
            answer = client.post("/v1/decode", content=file.to_bytes(), headers={"Content-Type": media_type})
            assert answer.status_code == status
    cut = client.post("/v1/decode", content=packed.content[:-1], headers={"Content-Type": packed_codes.MEDIA_TYPE})
    assert cut.status_code == 422
    assert "declares 2 images" in cut.json()["detail"]


def test_tokens_and_code_become_the_same_picture_in_the_type_accept_asks_for(
    client: httpx.Client, encoded: dict[str, Any]
) -> None:
    item = encoded["data"][0]
    for accept, image_format in (("*/*", "JPEG"), ("image/png", "PNG"), ("image/webp;q=0.9, text/html", "WEBP")):
        by_code = client.post("/v1/decode", json={"code": item["code"]}, headers={"Accept": accept})
        by_tokens = client.post("/v1/decode", json={"tokens": [item["tokens"]]}, headers={"Accept": "image/png"})
        assert opened(by_code.content).format == image_format
        assert opened(by_code.content).size == (128, 128)
        assert by_tokens.status_code == 200
    flat = client.post("/v1/decode", json={"tokens": item["tokens"]}, headers={"Accept": "image/png"})
    assert opened(flat.content).format == "PNG"


def test_raw_pixels_and_npy_hold_what_the_png_holds(client: httpx.Client, encoded: dict[str, Any]) -> None:
    body = {"code": encoded["data"][0]["code"]}
    png, raw, npy = (
        client.post("/v1/decode", json=body, headers={"Accept": accept})
        for accept in ("image/png", "application/octet-stream", "application/x-npy")
    )
    pixels = np.asarray(opened(png.content))
    assert raw.headers["x-shape"] == "128,128,3"
    assert raw.headers["x-dtype"] == "uint8"
    assert (np.frombuffer(raw.content, np.uint8).reshape(128, 128, 3) == pixels).all()
    assert (np.load(io.BytesIO(npy.content)) == pixels).all()


def test_many_images_are_decoded_as_json_or_as_multipart(client: httpx.Client, encoded: dict[str, Any]) -> None:
    body = {"codes": [encoded["data"][0]["code"], "A" * 64], "format": "png"}
    as_json = client.post("/v1/decode", json=body)
    pictures = [opened(base64.b64decode(item["b64"])) for item in as_json.json()["data"]]
    assert [picture.format for picture in pictures] == ["PNG", "PNG"]
    parts = client.post("/v1/decode", json=body, headers={"Accept": "multipart/mixed"})
    message = BytesParser().parsebytes(
        b"Content-Type: " + parts.headers["content-type"].encode() + b"\r\n\r\n" + parts.content
    )
    payloads = [part.get_payload(decode=True) for part in message.get_payload()]  # type: ignore[union-attr]
    assert payloads == [base64.b64decode(item["b64"]) for item in as_json.json()["data"]]


def test_an_images_address_is_its_code(client: httpx.Client, encoded: dict[str, Any]) -> None:
    code, revision = encoded["data"][0]["code"], encoded["revision"]
    address = f"/v1/images/{MODEL}@{revision}/{code}.png"
    first = client.get(address)
    assert opened(first.content).format == "PNG"
    assert "immutable" in first.headers["cache-control"]
    again = client.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    head = client.head(address)
    assert head.headers["content-length"] == str(len(first.content))
    assert head.content == b""
    bare = client.get(f"/v1/images/{MODEL}/{code}.png")
    assert bare.content == first.content
    assert "immutable" not in bare.headers["cache-control"]
    assert bare.headers["content-location"] == address


def test_the_same_seed_makes_the_same_image_and_the_library_the_same_tokens(client: httpx.Client) -> None:
    body = {"class": "CAT", "seed": 11, "n": 2, "preset": "fast"}
    first, second = (client.post("/v1/generate", json=body).json() for _ in range(2))
    assert first == second
    assert [item["seed"] for item in first["data"]] == [11, 12]
    assert first["data"][0]["tokens"] != first["data"][1]["tokens"]
    generator = load_generator(MODEL)
    expected = generator.generate([first["class_id"]] * 2, seeds=[11, 12], preset="fast").tolist()
    assert [item["tokens"] for item in first["data"]] == expected
    alone = client.post("/v1/generate", json={**body, "n": 1, "seed": 12}).json()
    assert alone["data"][0]["tokens"] == expected[1]


def test_settings_in_the_request_replace_those_of_the_preset(client: httpx.Client) -> None:
    changes = {
        "steps": 3,
        "guidance_scale": 2.0,
        "guidance_decay": "constant",
        "temperature": 0.0,
        "token_temperature": 0.5,
    }
    document = client.post("/v1/generate", json={"class": 10, "seed": 4, "preset": "fast", **changes}).json()
    generator = load_generator(MODEL)
    assert document["settings"] == vars(generator.settings("fast", **changes))
    expected = generator.generate([10], seeds=[4], preset="fast", **changes)  # type: ignore[arg-type]
    assert document["data"][0]["tokens"] == expected[0].tolist()


def test_one_generated_image_comes_as_itself_when_asked(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json={"class": 0, "seed": 1, "steps": 2}, headers={"Accept": "image/webp"})
    assert opened(answer.content).format == "WEBP"
    assert answer.headers["x-titok-seed"] == "1"
    again = client.get(f"/v1/images/{MODEL}/{answer.headers['x-titok-code']}.webp")
    assert again.status_code == 200


def test_no_class_makes_an_image_too(client: httpx.Client) -> None:
    for body in ({"class": None, "seed": 3, "preset": "fast"}, {"seed": 3, "preset": "fast"}):
        document = client.post("/v1/generate", json=body).json()
        assert (document["class_id"], document["class_name"]) == (None, None)
        assert len(document["data"][0]["tokens"]) == 32


def test_a_reconstruction_comes_with_its_tokens_and_quality(
    client: httpx.Client, encoded: dict[str, Any], jpeg: bytes
) -> None:
    headers = {"Content-Type": "image/jpeg"}
    document = client.post("/v1/reconstruct", content=jpeg, headers=headers).json()
    assert document["tokens"] == encoded["data"][0]["tokens"]
    assert document["code_bytes"] == 48
    assert document["quality"]["psnr"] > 10
    assert 0 < document["quality"]["ssim"] < 1
    assert opened(base64.b64decode(document["image"])).size == (128, 128)
    picture = client.post("/v1/reconstruct", content=jpeg, headers={**headers, "Accept": "image/png"})
    assert opened(picture.content).format == "PNG"
    assert picture.headers["x-titok-code"] == document["code"]


def test_models_list_their_facts_limits_and_classes(client: httpx.Client, encoded: dict[str, Any]) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get(f"/v1/models/{MODEL}").json()
    assert model["revision"] == encoded["revision"]
    assert (model["code_bytes"], model["code_characters"], model["bits_per_token"]) == (48, 64, 12)
    assert set(model["generator"]["presets"]) == {"published", "demo", "fast"}
    classes = client.get(f"/v1/models/{MODEL}/classes").json()["data"]
    assert [entry["id"] for entry in classes] == list(range(model["generator"]["num_classes"]))
    found = client.get(f"/v1/models/{MODEL}/classes", params={"q": "cat"}).json()["data"]
    assert found[0]["name"] == "cat"


def test_health_is_the_same_on_both_ports(client: httpx.Client, server: Any) -> None:
    for base in (server.url, server.admin_url):
        assert httpx.get(f"{base}/livez").json() == {"status": "alive"}
        assert httpx.get(f"{base}/readyz").status_code == 200
    health = client.get("/healthz").json()
    assert health["status"] == "ready"
    assert health["model"] == MODEL


def test_metrics_are_on_the_admin_port_alone_and_count(client: httpx.Client, server: Any, jpeg: bytes) -> None:
    client.post("/v1/encode", content=jpeg, headers={"Content-Type": "image/jpeg"})
    text = httpx.get(f"{server.admin_url}/metrics").text
    assert 'titok_http_requests_total{code="200",method="POST",route="/v1/encode"}' in text
    assert 'titok_worker_up{device="cpu"} 1.0' in text
    assert 'titok_batch_images_count{device="cpu",op="encode"}' in text
    refused = client.get("/metrics")
    assert refused.status_code == 404
    assert "admin port" in refused.json()["detail"]


def test_ids_and_traces_are_echoed_if_well_formed(client: httpx.Client) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = client.get("/livez", headers={"X-Request-ID": "job-17", "traceparent": trace})
    assert answer.headers["x-request-id"] == "job-17"
    assert answer.headers["traceparent"] == trace
    made_up = client.get("/livez", headers={"X-Request-ID": "two words", "traceparent": "00-0-0-0"})
    assert made_up.headers["x-request-id"] not in ("", "two words")
    assert "traceparent" not in made_up.headers


def test_server_timing_lists_the_stages(client: httpx.Client, photographs: list[Image.Image]) -> None:
    buffer = io.BytesIO()
    photographs[1].resize((300, 200)).save(buffer, "WEBP")
    answer = client.post("/v1/encode", content=buffer.getvalue(), headers={"Content-Type": "image/webp"})
    stages = [entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")]
    assert stages == ["read", "cache", "preprocess", "queue", "device", "total"]


def test_the_openapi_document_shows_every_route_with_an_example(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert '"example' in json.dumps({**operation, "responses": operation["responses"]["200"]}), path
    example = document["paths"]["/v1/encode"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert CODES.from_text([example["data"][0]["code"]])[0].tolist() == example["data"][0]["tokens"]
    assert {
        "/v1/encode",
        "/v1/decode",
        "/v1/images/{tokenizer}/{code}.{extension}",
        "/v1/generate",
        "/v1/reconstruct",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/classes",
        "/livez",
        "/readyz",
        "/healthz",
    } <= set(document["paths"])


def test_the_openapi_document_names_each_operation_once_and_its_example_of_an_image_is_one(
    client: httpx.Client,
) -> None:
    document = client.get("/openapi.json").json()
    names = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(names)) == len(names)
    example = document["paths"]["/v1/encode"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v1/encode", json=example).status_code == 200


def test_the_examples_are_of_the_revision_that_ships(client: httpx.Client) -> None:
    revision = client.get(f"/v1/models/{MODEL}").json()["revision"]
    assert revision == EXAMPLE_REVISION
    page = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r'"revision": ?"([^"]*)"', page)) == {revision}


def test_the_page_of_the_api_needs_no_internet(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://www.w3.org", "")
    scripts = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert scripts
    for script in scripts:
        assert client.get(script).status_code == 200
