"""Whatever a client sends gets its problem document, and the next good request succeeds."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image

IMAGE = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}
GOOD_CODE = "A" * 64


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel whose header promises more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def photograph(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, image_format)
    return buffer.getvalue()


def encode(body: bytes, content_type: str = "image/png", **headers: str) -> dict[str, Any]:
    return {"url": "/v1/encode", "content": body, "headers": {"Content-Type": content_type, **headers}}


def decode(body: object, **headers: str) -> dict[str, Any]:
    return {"url": "/v1/decode", "json": body, "headers": headers}


def generate(body: object, **headers: str) -> dict[str, Any]:
    return {"url": "/v1/generate", "json": body, "headers": headers}


def encode_json(body: object) -> dict[str, Any]:
    return {"url": "/v1/encode", "json": body}


NO_LINE_FEEDS = b"\xff\xd8" + bytes(range(14, 256)) * 20
FORM = "application/x-www-form-urlencoded"

CASES = {
    # images
    "an empty body": (encode(b""), 400, "undecodable-image", "body"),
    "text that says it is an image": (encode(b"hello, this is no image"), 400, "undecodable-image", "body"),
    "a page that says it is an image": (encode(b"<!doctype html><html></html>"), 400, "undecodable-image", "body"),
    "half a photograph": (encode(photograph("JPEG")[:900]), 400, "undecodable-image", "body"),
    "a header and no pixels": (encode(photograph("PNG")[:40]), 400, "undecodable-image", "body"),
    "60,000 x 60,000 pixels": (encode(png(60_000, 60_000)), 413, "content-too-large", "body"),
    "an SVG": (
        encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        415,
        "unsupported-media-type",
        "body",
    ),
    "a body of another type": (encode(b"x", "text/plain"), 415, "unsupported-media-type", "header/Content-Type"),
    "curl's default type": (
        encode(photograph("PNG"), "application/x-www-form-urlencoded"),
        415,
        "unsupported-media-type",
        "header/Content-Type",
    ),
    "an answer nobody can give": (
        encode(photograph("PNG"), Accept="text/html"),
        406,
        "not-acceptable",
        "header/Accept",
    ),
    "a form with text": (
        {"url": "/v1/encode", "data": {"image": "x"}, "files": {"f": b""}},
        400,
        "undecodable-image",
        "body/0",
    ),
    "a second file that is no image": (
        {"url": "/v1/encode", "files": [("a", ("a.png", photograph("PNG"))), ("b", ("b.png", b"no"))]},
        400,
        "undecodable-image",
        "body/1",
    ),
    "a form without its boundary": (encode(b"--x", "multipart/form-data"), 400, "malformed-body", None),
    "a broken form": (encode(b"--x\r\nnonsense", "multipart/form-data; boundary=x"), 400, "malformed-body", "body"),
    "65 images": (
        {"url": "/v1/encode", "files": [("i", (f"{i}.png", b"x")) for i in range(65)]},
        413,
        "content-too-large",
        "body",
    ),
    "base64 that is none": ({"url": "/v1/encode", "json": {"image": "???"}}, 400, "malformed-body", "/image"),
    "a data URI without base64": ({"url": "/v1/encode", "json": {"image": "data:,x"}}, 400, "malformed-body", "/image"),
    "no image in JSON": ({"url": "/v1/encode", "json": {}}, 422, "invalid-request", ""),
    "an empty list of images": ({"url": "/v1/encode", "json": {"images": []}}, 422, "invalid-request", "body"),
    "an unknown member": ({"url": "/v1/encode", "json": {"picture": "x"}}, 422, "invalid-request", "/picture"),
    "a deadline that is no time": (
        encode(photograph("PNG"), **{"X-Request-Timeout-Ms": "-5"}),
        422,
        "invalid-request",
        "header/X-Request-Timeout-Ms",
    ),
    # tokens
    "JSON that is none": (
        {"url": "/v1/decode", "content": b'{"tokens": [', "headers": JSON},
        400,
        "malformed-body",
        "body",
    ),
    "NaN in JSON": (
        {"url": "/v1/decode", "content": b'{"tokens": [NaN]}', "headers": JSON},
        422,
        "invalid-request",
        "/tokens/0",
    ),
    "JSON that is a list": (decode([1, 2]), 422, "invalid-request", ""),
    "JSON nested a thousand deep": (
        {"url": "/v1/decode", "content": b"[" * 5000 + b"]" * 5000, "headers": JSON},
        400,
        "malformed-body",
        "body",
    ),
    "nothing to decode": (decode({}), 422, "invalid-request", ""),
    "tokens and a code": (decode({"tokens": [0] * 32, "code": GOOD_CODE}), 422, "invalid-request", ""),
    "an id too large": (decode({"tokens": [[0] * 32, [0] * 31 + [4096]]}), 422, "invalid-request", "/tokens/1/31"),
    "a negative id": (decode({"tokens": [-1] + [0] * 31}), 422, "invalid-request", "/tokens/0"),
    "an id beyond 64 bits": (decode({"tokens": [2**70] + [0] * 31}), 422, "invalid-request", "/tokens/0"),
    "an id that is a fraction": (decode({"tokens": [[1.5] + [0] * 31]}), 422, "invalid-request", "/tokens/0/0"),
    "an id that is true": (decode({"tokens": [[True] + [0] * 31]}), 422, "invalid-request", "/tokens/0/0"),
    "an id that is text": (decode({"tokens": [["7"] + [0] * 31]}), 422, "invalid-request", "/tokens/0/0"),
    "33 ids": (decode({"tokens": [[0] * 33]}), 422, "invalid-request", "/tokens/0"),
    "ids of a tokenizer with 64 tokens": (decode({"tokens": [0] * 64}), 422, "invalid-request", "/tokens"),
    "rows of several kinds": (decode({"tokens": [[0] * 32, 5]}), 422, "invalid-request", "/tokens/1"),
    "a code too short": (decode({"code": "A" * 63}), 422, "invalid-request", "/code"),
    "a code of another alphabet": (decode({"codes": [GOOD_CODE, "!" * 64]}), 422, "invalid-request", "/codes/1"),
    "a code that is a number": (decode({"code": 5}), 422, "invalid-request", "/code"),
    "another tokenizer's tokens": (decode({"code": GOOD_CODE, "model": "titok-l-32"}), 404, "unknown-model", "/model"),
    "another revision's tokens": (decode({"code": GOOD_CODE, "revision": "0"}), 409, "revision-mismatch", "/revision"),
    "65 codes": (decode({"codes": [GOOD_CODE] * 65}), 413, "content-too-large", "/codes"),
    "many images as one picture": (
        decode({"codes": [GOOD_CODE] * 2}, Accept="image/png"),
        406,
        "not-acceptable",
        "header/Accept",
    ),
    "a quality of 0": (decode({"code": GOOD_CODE, "quality": 0}), 422, "invalid-request", "/quality"),
    "packed codes with bytes over": (
        {"url": "/v1/decode", "content": b"x" * 49, "headers": {"Content-Type": "application/octet-stream"}},
        422,
        "invalid-request",
        "body",
    ),
    "no packed codes": (
        {"url": "/v1/decode", "content": b"", "headers": {"Content-Type": "application/octet-stream"}},
        422,
        "invalid-request",
        "body",
    ),
    "tokens as XML": (
        {"url": "/v1/decode", "content": b"<a/>", "headers": {"Content-Type": "text/xml"}},
        415,
        "unsupported-media-type",
        "header/Content-Type",
    ),
    # generation
    "an unknown class": (generate({"class": "golden retreiver"}), 404, "unknown-class", "/class"),
    "a class id too large": (generate({"class": 100_000}), 404, "unknown-class", "/class"),
    "a negative class id": (generate({"class": -1}), 404, "unknown-class", "/class"),
    "a class that is true": (generate({"class": True}), 422, "invalid-request", "/class"),
    "no images": (generate({"class": 0, "n": 0}), 422, "invalid-request", "/n"),
    "17 images": (generate({"class": 0, "n": 17}), 413, "content-too-large", "/n"),
    "no steps": (generate({"class": 0, "steps": 0}), 422, "invalid-request", "/steps"),
    "too many steps": (generate({"class": 0, "steps": 257}), 422, "invalid-request", "/steps"),
    "guidance below 0": (generate({"class": 0, "guidance_scale": -1}), 422, "invalid-request", "/guidance_scale"),
    "a temperature too high": (generate({"class": 0, "temperature": 1e9}), 422, "invalid-request", "/temperature"),
    "a token temperature below 0": (
        generate({"class": 0, "token_temperature": -1}),
        422,
        "invalid-request",
        "/token_temperature",
    ),
    "an unknown preset": (generate({"class": 0, "preset": "best"}), 422, "invalid-request", "/preset"),
    "a seed below 0": (generate({"class": 0, "seed": -1}), 422, "invalid-request", "/seed"),
    "seeds that would overflow": (generate({"class": 0, "seed": 2**63 - 1, "n": 2}), 422, "invalid-request", "/seed"),
    "a preview that is text": (generate({"class": 0, "preview": "yes"}), 422, "invalid-request", "/preview"),
    "a preview and no events": (generate({"class": 0, "preview": True}), 422, "invalid-request", "/preview"),
    "events of an unknown class": (
        generate({"class": "golden retreiver"}, Accept="text/event-stream"),
        404,
        "unknown-class",
        "/class",
    ),
    "a class in a form": (
        {"url": "/v1/generate", "data": {"class": "cat"}},
        415,
        "unsupported-media-type",
        "header/Content-Type",
    ),
}
ADDRESSES = {
    "an unknown path": ("/v1/nothing", 404, "not-found"),
    "an unknown model": ("/v1/models/titok-x", 404, "unknown-model"),
    "the classes of an unknown model": ("/v1/models/titok-x/classes", 404, "unknown-model"),
    "an image of another tokenizer": (f"/v1/images/titok-l-32/{GOOD_CODE}.png", 404, "unknown-model"),
    "an image of another revision": (f"/v1/images/titok-mini-32@old/{GOOD_CODE}.png", 410, "gone"),
    "an image of a cut code": ("/v1/images/titok-mini-32/AAAAA.png", 422, "invalid-request"),
    "an image of another format": (f"/v1/images/titok-mini-32/{GOOD_CODE}.gif", 404, "not-found"),
    "an image of 15 pixels": (f"/v1/images/titok-mini-32/{GOOD_CODE}.jpg?size=15", 422, "invalid-request"),
    "an image of quality 101": (f"/v1/images/titok-mini-32/{GOOD_CODE}.jpg?quality=101", 422, "invalid-request"),
    "a method that is none": ("/v1/encode", 405, "method-not-allowed"),
}


def check_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:titok:problem:{slug}"
    assert document["status"] == status
    assert document["detail"].endswith((".", "?"))
    assert document["instance"] == answer.headers["x-request-id"]
    return document


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_gets_its_problem_and_the_next_good_one_succeeds(client: httpx.Client, name: str) -> None:
    request, status, slug, pointer = CASES[name]
    document = check_problem(client.post(**request), status, slug)
    if pointer is not None:
        assert document["errors"][0]["pointer"] == pointer
    assert client.post("/v1/encode", content=photograph("PNG"), headers=IMAGE).status_code == 200


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_bad_address_gets_its_problem(client: httpx.Client, name: str) -> None:
    path, status, slug = ADDRESSES[name]
    check_problem(client.get(path), status, slug)


@pytest.mark.parametrize(
    ("path", "advice"),
    [("encode", "image/jpeg"), ("decode", "packed codes"), ("generate", "Send application/json.")],
)
def test_a_refused_content_type_is_answered_with_what_to_send_instead(
    client: httpx.Client, path: str, advice: str
) -> None:
    named = check_problem(
        client.post(f"/v1/{path}", content=b"<a/>", headers={"Content-Type": "text/xml; charset=utf-8"}),
        415,
        "unsupported-media-type",
    )
    assert named["detail"].startswith("Content-Type is text/xml. ")
    assert advice in named["detail"]
    (error,) = named["errors"]
    assert error["value"] == "text/xml"
    assert "application/json" in error["expected"]
    absent = check_problem(client.post(f"/v1/{path}", content=b"<a/>"), 415, "unsupported-media-type")
    assert absent["detail"].startswith("Content-Type is absent. ")
    assert "value" not in absent["errors"][0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (encode(photograph("PNG"), "application/x-www-form-urlencoded"), "use --data-binary"),
        (encode(NO_LINE_FEEDS, "image/jpeg"), "curl -d removes: send it with --data-binary"),
        (encode(NO_LINE_FEEDS.replace(b"\xff\xd8", b"\x89PNG"), "image/png"), "curl -d removes"),
        (
            decode({"codes": [GOOD_CODE]}) | {"headers": {"Content-Type": FORM}},
            "add -H 'Content-Type: application/json'",
        ),
        (encode_json({"image": "https://example.com/cat.jpg"}), "URLs are not fetched"),
        (encode_json({"images": ["x" * 9]}), "The image at /images/0 is not base64"),
        (encode_json({"picture": ""}), "known members: image, images"),
        (generate({"klass": "cat"}), "/klass: there is no such member; known members: class, n, seed"),
        (generate({"class": "qqqqzzzz"}), "GET /v1/models/titok-mini-32/classes lists them"),
        (generate({"class": "cat", "n": 1.5}), "/n: a whole number is expected"),
        (decode({"codes": ["A" * 63 + "+"]}), "letters A-Z and a-z, the digits 0-9, '-' and '_'"),
    ],
)
def test_a_message_names_the_mistake(client: httpx.Client, call: dict[str, Any], words: str) -> None:
    answer = client.post(**call)
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["detail"]


def test_base64_of_either_alphabet_is_accepted_in_lines_and_without_padding(client: httpx.Client) -> None:
    image = photograph("PNG")
    expected = client.post(**encode(image)).json()["data"][0]["code"]
    for text in (
        base64.b64encode(image).decode(),
        base64.urlsafe_b64encode(image).decode().rstrip("="),
        base64.encodebytes(image).decode(),
        "data:image/png;base64," + base64.encodebytes(image).decode(),
    ):
        assert client.post(**encode_json({"image": text})).json()["data"][0]["code"] == expected


def test_a_class_id_may_be_called_so(client: httpx.Client) -> None:
    first, second = (
        client.post(**generate({name: 3, "seed": 1, "steps": 2})).json()["data"][0]["code"]
        for name in ("class", "class_id")
    )
    assert first == second
    assert client.post(**generate({"class": 3, "class_id": 3})).status_code == 422


@pytest.mark.parametrize("extension", ["jpeg", "JPG", "Png"])
def test_the_extension_of_an_address_may_be_spelled_otherwise(client: httpx.Client, extension: str) -> None:
    canonical = extension.lower().replace("jpeg", "jpg")
    given, expected = (
        client.get(f"/v1/images/titok-mini-32/{GOOD_CODE}.{spelled}") for spelled in (extension, canonical)
    )
    assert given.content == expected.content
    assert given.headers["Content-Location"] == expected.headers["Content-Location"]


def test_an_out_of_range_id_is_named_with_its_value_and_the_allowed_range(client: httpx.Client) -> None:
    answer = client.post("/v1/decode", json={"tokens": [[0] * 5 + [4096] + [0] * 26]})
    (error,) = answer.json()["errors"]
    assert error == {
        "pointer": "/tokens/0/5",
        "detail": "token id out of range",
        "value": 4096,
        "expected": "0..4095",
    }


def test_an_unknown_class_is_answered_with_near_matches(client: httpx.Client) -> None:
    document = client.post("/v1/generate", json={"class": "catt"}).json()
    assert "cat" in document["near_matches"]
    assert "Did you mean" in document["detail"]


def test_values_that_cannot_be_written_as_utf8_are_echoed_safely(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", content=b'{"class": "\\ud800"}', headers=JSON)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    answer = client.post("/v1/generate", content=b'{"class": "\\u0000\xff"}', headers=JSON)
    assert 400 <= answer.status_code < 500


def test_an_animated_gif_is_its_first_frame(client: httpx.Client) -> None:
    first, second = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    animated, still = io.BytesIO(), io.BytesIO()
    first.save(animated, "GIF", save_all=True, append_images=[second])
    first.save(still, "GIF")
    tokens = [
        client.post("/v1/encode", content=data.getvalue(), headers={"Content-Type": "image/gif"}).json()["data"][0][
            "tokens"
        ]
        for data in (animated, still)
    ]
    assert tokens[0] == tokens[1]


def test_an_image_labelled_as_another_format_is_read_by_its_bytes(client: httpx.Client) -> None:
    answer = client.post("/v1/encode", content=photograph("JPEG"), headers={"Content-Type": "image/webp"})
    assert answer.status_code == 200
