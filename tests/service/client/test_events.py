"""Server-sent events, from chunks of any size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.client import ConnectionFailed, Generated, NotFound, Step, TiTokError, UnexpectedAnswer
from service.client.events import EventDecoder, GenerationEvents

STEP = {"index": 0, "step": 1, "steps": 2, "tokens": [None, 7], "known": 1}
IMAGE = {"index": 0, "tokens": [3, 7], "code": "AHAD", "seed": 5, "image": "/9g=", "content_type": "image/jpeg"}
DONE = {
    "model": "m",
    "revision": "r",
    "generator_revision": "g",
    "class_id": 1,
    "class_name": "cat \u2028",
    "settings": {"steps": 2},
}


def wire(*events: tuple[str, Any], end: str = "\n") -> bytes:
    lines = [f"event: {name}{end}data: {json.dumps(data, ensure_ascii=False)}{end}{end}" for name, data in events]
    return "".join(lines).encode()


def read(data: bytes) -> list[Step | Generated]:
    events = GenerationEvents()
    results = list(events.feed(data))
    events.end()
    return results


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_do_not_depend_on_the_chunks(end: str) -> None:
    data = b": comment\n\n" + wire(("step", STEP), ("image", IMAGE), ("done", DONE), end=end)
    whole = list(EventDecoder().feed(data))
    assert [name for name, _ in whole] == ["step", "image", "done"]
    for size in (1, 2, 3, 7):
        decoder = EventDecoder()
        parts = [data[start : start + size] for start in range(0, len(data), size)]
        assert [event for part in parts for event in decoder.feed(part)] == whole


def test_multi_line_data_and_events_without_a_name() -> None:
    assert list(EventDecoder().feed(b"data: a\ndata:b\n\nid: 3\n\nevent: x\n\n")) == [("message", "a\nb")]


def test_images_have_the_shared_members_of_the_last_event() -> None:
    step, image = read(wire(("step", STEP), ("image", IMAGE), ("done", DONE)))
    assert isinstance(step, Step)
    assert (step.tokens, step.known, step.picture) == ((None, 7), 1, None)
    assert isinstance(image, Generated)
    assert (image.tokens, image.revision, image.class_name) == ((3, 7), "r", "cat \u2028")
    assert image.picture.data == b"\xff\xd8"


def test_a_preview_has_an_image() -> None:
    (step,) = GenerationEvents().feed(wire(("step", {**STEP, "image": "/9g=", "content_type": "image/jpeg"})))
    assert isinstance(step, Step)
    assert step.picture is not None
    assert step.picture.content_type == "image/jpeg"


def test_an_error_event_is_raised_with_its_document() -> None:
    with pytest.raises(NotFound, match="gone") as raised:
        read(wire(("step", STEP), ("error", {"status": 404, "title": "t", "detail": "gone"})))
    assert raised.value.document["title"] == "t"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (wire(("step", STEP), ("image", IMAGE)), ConnectionFailed),
        (wire(("step", {"index": 0})), UnexpectedAnswer),
        (b"event: done\ndata: {\n\n", UnexpectedAnswer),
    ],
    ids=["cut off", "not a step", "not JSON"],
)
def test_incomplete_or_invalid_events_raise(data: bytes, error: type[TiTokError]) -> None:
    with pytest.raises(error):
        read(data)
