"""The client against a running service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncTiTokClient,
    BadRequest,
    Encoded,
    InvalidRequest,
    NotFound,
    RevisionMismatch,
    TiTokClient,
    Unauthorized,
)
from tests.e2e.conftest import Server


@pytest.fixture(scope="module")
def titok_client(server: Server) -> Any:
    with TiTokClient(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def encoded(titok_client: TiTokClient, jpeg: bytes) -> Encoded:
    return titok_client.encode(jpeg)


def test_every_form_of_an_image_has_the_same_tokens(
    titok_client: TiTokClient, photographs: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    photographs[0].save(path)
    forms = [path, str(path), path.read_bytes(), photographs[0], np.asarray(photographs[0])]
    results = [titok_client.encode(form) for form in forms]
    assert len({(result.tokens, result.code, result.revision) for result in results}) == 1
    assert results[0].original_size == photographs[0].size
    assert titok_client.encode(forms)[3].tokens == results[0].tokens


def test_a_long_list_is_split_and_returned_in_order(titok_client: TiTokClient) -> None:
    images = [Image.new("RGB", (8, 8), (number * 3, 255 - number, number)) for number in range(70)]
    done: list[int] = []
    together = titok_client.encode(iter(images), progress=lambda count, _: done.append(count))
    assert done == [64, 70]
    for number in (0, 63, 64, 69):
        assert together[number].tokens == titok_client.encode(images[number]).tokens
    pictures = titok_client.decode(together)
    assert len(pictures) == 70
    alone = titok_client.decode(together[69]).array().astype(int)  # batches of another size round otherwise
    assert np.abs(pictures[69].array() - alone).mean() < np.abs(pictures[0].array() - alone).mean() / 4


def test_codes_results_and_tokens_decode_to_the_same_image(titok_client: TiTokClient, encoded: Encoded) -> None:
    sources = [encoded, encoded.code, list(encoded.tokens), np.array(encoded.tokens)]
    pictures = [titok_client.decode(source) for source in sources]
    assert len({picture.data for picture in pictures}) == 1
    assert pictures[0].array().shape == (128, 128, 3)
    assert titok_client.decode(encoded, format="webp").image().format == "WEBP"
    many = titok_client.decode([encoded.tokens, encoded.tokens], format="jpeg")
    assert [picture.content_type for picture in many] == ["image/jpeg"] * 2
    assert len(titok_client.decode(np.array([encoded.tokens] * 2))) == 2


def test_a_decoded_image_is_saved(titok_client: TiTokClient, encoded: Encoded, tmp_path: Path) -> None:
    titok_client.decode(encoded).save(tmp_path / "back.png")
    titok_client.decode(encoded).save(tmp_path / "back.jpg")
    for name, format_ in (("back.png", "PNG"), ("back.jpg", "JPEG")):
        with Image.open(tmp_path / name) as picture:
            assert (picture.size, picture.format) == ((128, 128), format_)


def test_numbers_of_numpy_are_accepted(titok_client: TiTokClient, encoded: Encoded) -> None:
    options = {"seed": np.int64(7), "steps": np.uint8(3), "guidance_scale": np.float32(4)}
    (generated,) = titok_client.generate(np.int64(3), preset="fast", **options)
    assert generated.tokens == titok_client.generate(3, preset="fast", seed=7, steps=3, guidance_scale=4)[0].tokens
    mixed = titok_client.mix([encoded, generated], weights=np.array([1, 2], np.float32))
    assert mixed.code == titok_client.mix([encoded, generated], weights=[1, 2]).code
    with pytest.raises(TypeError, match="float"):
        titok_client.decode([list(encoded.tokens), [1.5] * 32])


def test_the_url_may_end_in_the_version(server: Server, encoded: Encoded, jpeg: bytes) -> None:
    with TiTokClient(f"{server.url}/v1/") as client:
        assert client.encode(jpeg).tokens == encoded.tokens


def test_what_is_no_image_raises(titok_client: TiTokClient, jpeg: bytes) -> None:
    for wrong in (3, None, object()):
        with pytest.raises(TypeError, match="expected images: paths, bytes"):
            titok_client.encode(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError) as raised:
        titok_client.encode([jpeg, 3])
    assert raised.value.__notes__ == ["item 1 of the list"]


def test_asynchronous_iterables_are_read_by_the_asynchronous_client(
    server: Server, encoded: Encoded, jpeg: bytes
) -> None:
    async def images(last: object) -> AsyncIterator[Any]:
        yield jpeg
        await asyncio.sleep(0)
        yield last

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield jpeg

    async def run() -> None:
        async with AsyncTiTokClient(server.url) as client:
            assert [each.tokens for each in await client.encode(images(jpeg))] == [encoded.tokens] * 2
            assert len(await client.decode(each async for each in images(encoded) if each is encoded)) == 1
            with pytest.raises(TypeError):
                await client.encode(images(3))
            waiting = asyncio.create_task(client.encode(never()))
            await client.models()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(run())
    with TiTokClient(server.url) as client, pytest.raises(TypeError, match="AsyncTiTokClient"):
        client.encode(images(jpeg))


def test_tokens_of_another_tokenizer_raise(titok_client: TiTokClient, encoded: Encoded) -> None:
    with pytest.raises(RevisionMismatch):
        titok_client.decode(encoded.code, revision="another")
    with pytest.raises(NotFound):
        titok_client.decode([encoded.code] * 2, model="another")


def test_generation_is_reproducible_by_seed(titok_client: TiTokClient) -> None:
    images = titok_client.generate("cat", n=17, seed=5, preset="fast", format="png")
    assert [image.seed for image in images] == list(range(5, 22))
    (alone,) = titok_client.generate("cat", seed=21, preset="fast", format="png")
    assert alone.tokens == images[16].tokens
    assert (alone.class_name, alone.model) == ("cat", "titok-mini-32")
    (drawn,) = titok_client.generate(None, preset="fast")
    (again,) = titok_client.generate(None, preset="fast", seed=drawn.seed)
    assert drawn.tokens == again.tokens


def test_a_reconstruction_has_tokens_image_and_quality(
    titok_client: TiTokClient, encoded: Encoded, jpeg: bytes
) -> None:
    result = titok_client.reconstruct(jpeg)
    assert result.tokens == encoded.tokens
    assert result.psnr is not None
    assert result.psnr > 10
    assert result.picture.image().size == (128, 128)


def test_models_and_classes_are_typed(titok_client: TiTokClient) -> None:
    (model,) = titok_client.models()
    assert (model.id, model.num_tokens, model.limits.max_images) == ("titok-mini-32", 32, 64)
    assert model.generator is not None
    assert set(model.generator.presets) == {"published", "demo", "fast"}
    assert len(titok_client.classes()) == model.generator.num_classes
    assert titok_client.classes("cat")[0].names == ("cat",)


def test_errors_have_the_problem_document(titok_client: TiTokClient, jpeg: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        titok_client.decode([9999] * 32)
    assert raised.value.errors[0]["pointer"].startswith("/tokens/0")
    assert raised.value.request_id
    with pytest.raises(NotFound, match="Did you mean"):
        titok_client.generate("catt")
    with pytest.raises(BadRequest) as broken:
        titok_client.encode([jpeg, jpeg, b"\x89PNG\r\n\x1a\n", jpeg])
    assert broken.value.index == 2


def test_asyncio_calls_run_concurrently(server: Server, encoded: Encoded, jpeg: bytes) -> None:
    async def run() -> None:
        async with AsyncTiTokClient(server.url) as client:
            one, many, picture, new = await asyncio.gather(
                client.encode(jpeg),
                client.encode([jpeg] * 3),
                client.decode(encoded),
                client.generate("cat", n=2, seed=1, preset="fast"),
            )
            assert {result.tokens for result in (one, *many)} == {encoded.tokens}
            assert picture.image().size == (128, 128)
            assert [image.seed for image in new] == [1, 2]

    asyncio.run(run())


def test_the_api_key_is_sent(keyed_server: Server) -> None:
    with TiTokClient(keyed_server.url) as client, pytest.raises(Unauthorized, match="missing"):
        client.models()
    with TiTokClient(keyed_server.url, api_key="first-key") as client:
        assert client.models()
