"""Server-sent events (WHATWG HTML, section 9.2.6) of a generate request.

httpx's own line decoder and ``str.splitlines`` also split at characters such as U+2028, which JSON may contain.
"""

import json
from collections.abc import Iterator
from typing import Any

from .calls import Call, Class, GenerateOptions, generate_document
from .errors import ConnectionFailed, UnexpectedAnswer, problem_error
from .responses import read_generated_item, read_step
from .results import Generated, Step


def generate_events(class_: Class, n: int, preview: bool, options: GenerateOptions) -> Call[None]:
    """Generates ``n`` images as a stream of events, which the caller reads."""
    return Call(
        path="/v1/generate",
        headers={"Accept": "text/event-stream"},
        body={"json": {**generate_document(class_, n, options), "preview": preview}},
        read=lambda _: None,
    )


class EventDecoder:
    """Decodes events, as (name, data), from chunks of bytes of any size. An incomplete last event is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """The events that this chunk completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            name, _, value = text.partition(":")
            if name == "event":
                self._name = value.removeprefix(" ")
            elif name == "data":
                self._data.append(value.removeprefix(" "))
            elif not text:
                if self._data:
                    yield self._name or "message", "\n".join(self._data)
                self._name, self._data = "", []


class GenerationEvents:
    """Reads sampling steps as they arrive, then the images. Raises the error of an ``error`` event."""

    def __init__(self) -> None:
        self._decoder = EventDecoder()
        self._images: list[dict[str, Any]] = []
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Step | Generated]:
        """The steps and images that this chunk completes."""
        for name, data in self._decoder.feed(chunk):
            try:
                yield from self._read(name, json.loads(data))
            except (LookupError, TypeError, ValueError) as error:
                raise UnexpectedAnswer(f"not an event of a TiTok service: {name} {data[:200]!r}", status=200) from error

    def end(self) -> None:
        """Marks the end of the response. Raises ``ConnectionFailed`` if there was no ``done`` event."""
        if not self._done:
            raise ConnectionFailed("the event stream ended before its last event")

    def _read(self, name: str, document: Any) -> Iterator[Step | Generated]:
        if name == "step":
            yield read_step(document)
        elif name == "image":
            self._images.append(document)  # the members that all images share come in the last event
        elif name == "done":
            self._done = True
            for item in self._images:
                yield read_generated_item(item, document)
        elif name == "error":
            raise problem_error(document, status=int(document["status"]))
