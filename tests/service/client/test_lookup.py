"""Look-ups by digest: the requests sent, and how their responses are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from service.client import BadRequest, NotFound, UnexpectedAnswer
from tests.service.client.faulty_server import Handler, Received, Reply, answer, faulty_server, problem
from tests.service.client.test_faults import Ask, ask, encoded, numbered, numbers, service

__all__ = ["ask"]

KNOWN = (1, 4, 9)


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def knowing(*known: int) -> Reply:
    """The service of ``test_faults`` with the images of these numbers in its cache."""
    codes = {digest(numbered(number)): number for number in known}

    def reply(handler: Handler) -> None:
        if handler.path == "/v1/encode":
            items = [{**encoded(1, number)["data"][0], "index": i} for i, number in enumerate(numbers(handler.seen))]
            answer({**encoded(0), "data": items})(handler)
            return
        if handler.path == "/v1/models":
            service(handler)
            return
        asked = json.loads(handler.seen.body)["sha256"]
        data = [{**encoded(1, codes[text])["data"][0], "sha256": text} for text in asked if text in codes]
        missing = [text for text in asked if text not in codes]
        answer({"model": "m", "revision": "r", "data": data, "missing": missing})(handler)

    return reply


def sent(received: Iterable[Received]) -> list[int]:
    """The numbers of the uploaded images."""
    return sorted(number for request in received if request.path == "/v1/encode" for number in numbers(request))


def test_digests_bytes_and_paths_are_looked_up(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "4"
    path.write_bytes(numbered(4))
    with faulty_server(knowing(*KNOWN)) as server:
        found = ask(server.url, "lookup", [numbered(1), path, str(path), digest(numbered(9)).upper(), numbered(2)])
        assert {name: image and image.tokens for name, image in found.items()} == {
            digest(numbered(1)): (1,),
            digest(numbered(4)): (4,),
            digest(numbered(9)): (9,),
            digest(numbered(2)): None,
        }
        assert found[digest(numbered(1))].cached
        assert list(ask(server.url, "lookup", path)) == [digest(numbered(4))]


def test_many_digests_are_split_into_requests(ask: Ask) -> None:
    done: list[tuple[int, int | None]] = []
    images = [numbered(number) for number in range(2001)]
    with faulty_server(knowing(*KNOWN)) as server:
        keywords = {"progress": lambda *figures: done.append(figures)}
        found = ask(server.url, "lookup", images, keywords=keywords)
        assert list(found) == [digest(image) for image in images]
        assert [number for number, image in enumerate(found.values()) if image] == list(KNOWN)
        assert sorted(len(json.loads(request.body)["sha256"]) for request in server.received) == [1, 1000, 1000]
    assert done == [(1000, 2001), (2000, 2001), (2001, 2001)]


def test_only_unknown_images_are_uploaded_and_results_are_in_order(ask: Ask) -> None:
    with faulty_server(knowing(*KNOWN)) as server:
        images = [numbered(number) for number in range(11)]
        results = ask(server.url, "encode", images, keywords={"lookup_first": True})
        assert [result.tokens for result in results] == [(number,) for number in range(11)]
        assert sent(server.received) == [number for number in range(11) if number not in KNOWN]


def test_equal_images_are_uploaded_once(ask: Ask) -> None:
    with faulty_server(knowing(*KNOWN)) as server:
        results = ask(server.url, "encode", [numbered(5), numbered(1), numbered(5)], keywords={"lookup_first": True})
        assert [result.tokens for result in results] == [(5,), (1,), (5,)]
        assert sent(server.received) == [5]


@pytest.mark.parametrize(("number", "paths"), [(1, []), (2, ["/v1/encode"])])
def test_a_single_image_is_uploaded_only_if_unknown(ask: Ask, number: int, paths: list[str]) -> None:
    def reply(handler: Handler) -> None:
        (knowing(*KNOWN) if handler.path == "/v1/codes:lookup" else answer(encoded(1, 2)))(handler)

    with faulty_server(reply) as server:
        assert ask(server.url, "encode", numbered(number), keywords={"lookup_first": True}).tokens == (number,)
        assert [request.path for request in server.received] == ["/v1/codes:lookup", *paths]


def test_all_images_are_uploaded_where_look_ups_are_off(ask: Ask) -> None:
    def reply(handler: Handler) -> None:
        (problem(404, "not-found") if handler.path == "/v1/codes:lookup" else service)(handler)

    with faulty_server(reply) as server:
        results = ask(server.url, "encode", [numbered(1), numbered(2)], keywords={"lookup_first": True})
        assert [result.tokens for result in results] == [(1,), (2,)]
        with pytest.raises(NotFound):
            ask(server.url, "lookup", [numbered(1)])


def test_the_index_of_a_broken_image_counts_known_images_too(ask: Ask) -> None:
    def reply(handler: Handler) -> None:
        if handler.path == "/v1/encode" and 8 in numbers(handler.seen):
            place = numbers(handler.seen).index(8)
            document = {"detail": "broken", "errors": [{"pointer": f"body/{place}", "detail": "broken"}]}
            answer(document, status=400, content_type="application/problem+json")(handler)
        else:
            knowing(6, 7)(handler)

    with faulty_server(reply) as server:
        with pytest.raises(BadRequest) as raised:
            ask(server.url, "encode", [numbered(number) for number in range(11)], keywords={"lookup_first": True})
        assert raised.value.index == 8


@pytest.mark.parametrize("document", [{"data": [], "missing": []}, {"data": []}, {"data": [{}], "missing": []}])
def test_a_response_that_does_not_match_the_request_raises(ask: Ask, document: dict[str, Any]) -> None:
    with faulty_server(answer({"model": "m", "revision": "r", **document})) as server, pytest.raises(UnexpectedAnswer):
        ask(server.url, "lookup", [numbered(1)])
