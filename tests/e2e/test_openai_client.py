"""The official OpenAI client on a real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.e2e.conftest import Server


@pytest.fixture(scope="module")
def images(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client.images


def test_models_are_listed(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == "titok-mini-32"
    assert (model.object, model.owned_by) == ("model", "titok")
    assert model.created > 1.7e9


def opened(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def test_a_class_becomes_images_in_base64(images: Any) -> None:
    answer = images.generate(prompt="cat", n=2, response_format="b64_json")
    assert [(opened(image).format, opened(image).size) for image in answer.data] == [("PNG", (128, 128))] * 2
    assert [image.url for image in answer.data] == [None, None]
    assert answer.created > 1.7e9
    assert (answer.size, answer.output_format) == ("128x128", "png")


@pytest.mark.parametrize("prompt", ["CAT", "a cat", "A photo of a cat.", "an image of the cat", " cat "])
def test_a_prompt_is_a_class_with_or_without_the_words_around_it(images: Any, prompt: str) -> None:
    assert images.generate(prompt=prompt, response_format="url").data[0].revised_prompt == "cat"


def test_a_url_is_the_images_own_address(images: Any, server: Server) -> None:
    both = images.generate(prompt="crab").data[0]
    assert both.url.startswith(f"{server.url}/v1/images/titok-mini-32@")
    assert httpx.get(both.url).content == base64.b64decode(both.b64_json)
    alone = images.generate(prompt="crab", response_format="url", output_format="webp").data[0]
    assert alone.b64_json is None
    assert Image.open(io.BytesIO(httpx.get(alone.url).content)).format == "WEBP"


def test_seed_and_code_are_returned_and_reproduce_the_image(images: Any, client: httpx.Client) -> None:
    image = images.generate(prompt="cat", response_format="url").data[0]
    body = {"class": "cat", "seed": image.seed}
    assert client.post("/v1/generate", json=body).json()["data"][0]["code"] == image.code


def test_another_size_is_scaled_to(images: Any) -> None:
    answer = images.generate(prompt="cat", size="1024x1024", output_format="jpeg", output_compression=50)
    assert opened(answer.data[0]).size == (1024, 1024)
    assert opened(answer.data[0]).format == "JPEG"
    assert httpx.get(answer.data[0].url).content == base64.b64decode(answer.data[0].b64_json)


def test_unknown_members_are_ignored(images: Any) -> None:
    answer = images.generate(
        prompt="cat", quality="high", style="vivid", user="me", background="opaque", size="auto", model="titok-mini-32"
    )
    assert len(answer.data) == 1


def test_an_unknown_class_is_an_error_with_a_message_that_helps(images: Any) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        images.generate(prompt="a photo of a catt")
    error = raised.value
    assert (error.code, error.param, error.type) == ("unknown_class", "prompt", "invalid_request_error")
    assert "Did you mean" in error.body["message"]
    document = error.response.json()
    assert document["type"] == "urn:titok:problem:unknown-class"
    assert error.response.headers["content-type"] == "application/problem+json"
    assert error.request_id == document["instance"]


@pytest.mark.parametrize(
    ("arguments", "error", "param"),
    [
        ({"model": "dall-e-3"}, openai.NotFoundError, "model"),
        ({"size": "1792x1024"}, openai.UnprocessableEntityError, "size"),
        ({"size": "8192x8192"}, openai.UnprocessableEntityError, "size"),
        ({"n": 0}, openai.UnprocessableEntityError, "n"),
        ({"n": 17}, openai.APIStatusError, "n"),
        ({"response_format": "gif"}, openai.UnprocessableEntityError, "response_format"),
        ({"stream": True}, openai.UnprocessableEntityError, "stream"),
        ({"extra_headers": {"X-Request-Timeout-Ms": "1"}}, openai.InternalServerError, None),
    ],
    ids=str,
)
def test_unsupported_arguments_raise_the_openai_clients_errors(
    images: Any, arguments: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as raised:
        images.generate(prompt="cat", **arguments)
    assert raised.value.param == param
    assert raised.value.body["message"] == raised.value.response.json()["detail"]


def test_a_missing_key_raises_the_openai_clients_error(keyed_server: Server) -> None:
    for key, is_known in (("wrong", False), ("first-key", True)):
        with openai.OpenAI(base_url=f"{keyed_server.url}/v1", api_key=key, max_retries=0) as client:
            if is_known:
                assert client.images.generate(prompt="cat").data
                continue
            with pytest.raises(openai.AuthenticationError) as raised:
                client.images.generate(prompt="cat")
            assert raised.value.code == "unauthorized"
