"""Server-sent events (WHATWG HTML, section 9.2.6) from the bytes of an answer, however they are cut, and what they say
of a generate request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from service.client.answers import read_generated_item, read_step
from service.client.errors import ConnectionFailed, UnexpectedAnswer, problem_error
from service.client.results import Generated, Step

__all__ = ["EventDecoder", "GenerationEvents"]


class EventDecoder:
    """Gives events as (name, data) as soon as they are whole; an unfinished one at the end is dropped, as it must be."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """The events that this chunk completes."""
        # Not str.splitlines: it also breaks at characters that JSON may hold as they are.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if not text:
                if self._data:
                    yield self._name or "message", "\n".join(self._data)
                self._name, self._data = "", []
            else:
                self._note(text)

    def _note(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)


class GenerationEvents:
    """Sampling steps as they come, then the images. An ``error`` is raised; so is an end without a ``done``."""

    def __init__(self) -> None:
        self._decoder = EventDecoder()
        self._images: list[dict[str, Any]] = []
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Step | Generated]:
        """What this chunk of the answer completes."""
        for name, data in self._decoder.feed(chunk):
            try:
                yield from self._read(name, json.loads(data))
            except (LookupError, TypeError, ValueError) as error:
                raise UnexpectedAnswer(f"not an event of a TiTok service: {name} {data[:200]!r}", status=200) from error

    def end(self) -> None:
        """The answer has ended. Raises ``ConnectionFailed`` if that was too early."""
        if not self._done:
            raise ConnectionFailed("the events ended before the last of them")

    def _read(self, name: str, document: Any) -> Iterator[Step | Generated]:
        if name == "step":
            yield read_step(document)
        elif name == "image":
            self._images.append(document)  # what all of them have in common comes last
        elif name == "done":
            self._done = True
            for item in self._images:
                yield read_generated_item(item, document)
        elif name == "error":
            raise problem_error(document, status=int(document["status"]))
