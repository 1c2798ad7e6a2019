"""Multipart forms (RFC 7578), parsed from a whole body."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import ErrorDetail
from service.http.deadlines import deadline_exceeded
from service.http.problems import ContentTooLarge, MalformedBody, Problem

_CHUNK_BYTES = 64 * 1024  # parsed between two looks at the clock


@dataclass
class FormPart:
    """One part: a file, whether it has a file name or not. ``content_type`` is empty if it states none."""

    content_type: str = ""
    data: bytearray = field(default_factory=bytearray)


def parse_form(body: bytes, content_type: str, *, max_parts: int, deadline: float) -> list[FormPart]:
    """The parts of a form with this ``Content-Type``.

    Raises ``MalformedBody``, ``ContentTooLarge`` for more parts, and ``DeadlineExceeded``: many short lines parse slowly.
    """
    parts: list[FormPart] = []
    name, value = bytearray(), bytearray()
    is_complete = False

    def begin_part() -> None:
        if len(parts) == max_parts:
            raise ContentTooLarge(f"The form has too many parts; at most {max_parts} are allowed.")
        parts.append(FormPart())

    def end_header() -> None:
        if name.lower() == b"content-type":
            parts[-1].content_type = value.decode("latin-1")
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    try:
        parser = MultipartParser(
            parse_options_header(content_type)[1].get(b"boundary", b""),
            {
                "on_part_begin": begin_part,
                "on_header_field": lambda data, start, end: name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: value.extend(data[start:end]),
                "on_header_end": end_header,
                "on_part_data": lambda data, start, end: parts[-1].data.extend(data[start:end]),
                "on_end": end,
            },
        )
        for start in range(0, len(body), _CHUNK_BYTES):
            if time.monotonic() > deadline:
                raise deadline_exceeded()
            parser.write(body[start : start + _CHUNK_BYTES])
    except FormParserError as error:
        raise _malformed(str(error)) from None
    if not is_complete:
        raise _malformed("it ends before its last boundary")
    return parts


def _malformed(reason: str) -> Problem:
    return MalformedBody(f"The form cannot be parsed: {reason}.", errors=[ErrorDetail(pointer="body", detail=reason)])
