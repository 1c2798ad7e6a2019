"""Request bodies as clients send them, and bodies that are made to take long."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time

import httpx
import numpy as np
import pytest
from fastapi import Request
from PIL import Image

from service.api.bodies import parse
from service.api.forms import parse_form
from service.http.problems import DeadlineExceeded, Problem
from tests.service.api.test_overload import PNG, open_service, picture
from tests.service.application import app_of

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="image"\r\n'
CODE = "BwcHBw"


def repeated(name: str, value: str, count: int) -> bytes:
    return f'{{"{name}":[{",".join([value] * count)}]}}'.encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v1/decode", repeated("codes", f'"{CODE}"', 65), id="codes"),
        pytest.param("/v1/decode", repeated("codes", f'"{CODE}"', 4097), id="codes over the schema's limit"),
        pytest.param("/v1/decode", repeated("tokens", "[1,2]", 65), id="rows of tokens"),
        pytest.param("/v1/mix", repeated("codes", f'"{CODE}"', 65), id="codes to mix"),
        pytest.param("/v1/mix", repeated("weights", "1", 4097), id="weights"),
        pytest.param("/v1/mix", repeated("positions", "1", 4097), id="positions"),
        pytest.param("/v1/codes:lookup", repeated("sha256", '""', 1001), id="digests"),
        *(
            pytest.param(path, body, id=f"{path} {name}")
            for path in ("/v1/decode", "/v1/mix", "/v1/encode", "/v1/reconstruct", "/v1/generate", "/v1/codes:lookup")
            for name, body in {
                "lists": repeated("tokens", "[]", 20_000),
                "strings": repeated("images", '""', 20_000),
                "depth": b"[" * 20_000,
                "members": json.dumps({str(index): 1 for index in range(20_000)}).encode(),
            }.items()
        ),
    ],
)
async def test_too_many_values_are_413_before_they_are_converted(path: str, body: bytes) -> None:
    async with open_service() as client:
        answer = await client.post(path, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:titok:problem:content-too-large")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"seed":' + b"9" * 100_000 + b"}", id="digits"),
        pytest.param(b'{"class":"' + b"a" * 1_000_000 + b'"}', id="a class"),
        pytest.param(b'{"model":"' + b"a" * 1_000_000 + b'"}', id="a model"),
        pytest.param(b" " * 1_000_000, id="spaces"),
        pytest.param(b"[" * 9_000, id="depth"),
    ],
)
async def test_long_values_are_refused(body: bytes) -> None:
    async with open_service() as client:
        assert (await client.post("/v1/generate", content=body, headers=JSON)).status_code in (400, 422)


async def test_a_json_body_has_a_limit_of_its_own_whether_its_length_is_announced_or_not() -> None:
    async def chunks() -> object:
        yield b" " * 3000

    async with open_service(max_json_bytes=2000) as client:
        for content in (b" " * 3000, chunks()):
            answer = await client.post("/v1/decode", content=content, headers=JSON)  # type: ignore[arg-type]
            assert answer.status_code == 413
            assert "at most 2000" in answer.json()["detail"]
        assert (await client.post("/v1/encode", content=picture(7) + bytes(3000), headers=PNG)).status_code == 200


async def test_large_bodies_are_parsed_in_a_thread_for_images() -> None:
    async with open_service() as client:
        scope = {"type": "http", "headers": [], "app": app_of(client), "state": {"deadline": time.monotonic() + 60}}
        names = [
            await parse(Request(scope), bytes(size), lambda _: threading.current_thread().name) for size in (9, 10**5)
        ]
        assert names == [threading.current_thread().name, "image"]


async def test_a_byte_order_mark_is_ignored() -> None:
    async with open_service() as client:
        body = json.dumps({"code": CODE}).encode("utf-8-sig")
        assert (await client.post("/v1/decode", content=body, headers=JSON)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/encode", "/v1/decode", "/v1/generate"])
@pytest.mark.parametrize("content_type", ["application/json", "image/png", "application/octet-stream", FORM])
async def test_an_encoded_body_is_415_and_names_the_encoding(path: str, content_type: str) -> None:
    async with open_service() as client:
        headers = {"Content-Type": content_type, "Content-Encoding": "gzip"}
        answer = await client.post(path, content=gzip.compress(b"{}"), headers=headers)
        assert answer.status_code == 415
        if "Content-Encoding" in answer.json()["detail"]:
            assert answer.headers["accept-encoding"] == "identity"
        else:
            assert "Content-Type" in answer.json()["detail"]  # refused for that first
        headers = {**PNG, "Content-Encoding": "identity"}
        assert (await client.post("/v1/encode", content=picture(7), headers=headers)).status_code == 200


@pytest.mark.parametrize("content_type", [b"", b"Content-Type: image/png\r\n"], ids=["no type", "image/png"])
async def test_a_part_of_a_form_is_an_image_also_without_a_file_name(content_type: bytes) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (700, 700, 3), np.uint8)).save(noise, "PNG")
    assert len(noise.getvalue()) > 1024 * 1024
    body = b"".join(PART + content_type + b"\r\n" + file + b"\r\n" for file in (noise.getvalue(), picture(7)))
    async with open_service() as client:
        answer = await client.post("/v1/encode", content=body + b"--b--\r\n", headers={"Content-Type": FORM})
    assert [item["original_size"]["width"] for item in answer.json()["data"]] == [700, 8]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", PART + b"\r\n--b--\r\n", 400),
        (FORM, b"no form", 400),
        (FORM, PART + b"\r\nx", 400),
        (FORM, b"--b--\r\n", 422),
        (FORM, b"--b\r\n" + b"a:b\r\n" * 100, 400),
        (FORM, (PART + b"\r\n\r\n") * 100 + b"--b--\r\n", 413),
    ],
    ids=["no boundary", "no form", "cut off", "no parts", "many headers", "many parts"],
)
async def test_a_bad_form_is_refused(content_type: str, body: bytes, status: int) -> None:
    async with open_service() as client:
        answer: httpx.Response = await client.post("/v1/encode", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_parsing_a_form_ends_at_the_deadline() -> None:
    with pytest.raises(Problem) as late:
        parse_form(PART, FORM, max_parts=1, deadline=time.monotonic() - 1)
    assert late.value.kind is DeadlineExceeded
