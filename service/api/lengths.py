"""The query parameter ``length``: how many tokens of an image a request is about."""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request

from models.codes.code_format import CodeError, CodeFormat
from service.http.problems import invalid_value

FIRST_TOKENS = "Number of tokens, the first ones of each image. Only for a prefix-decodable tokenizer. Default: all."
_POINTER = "query/length"
_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)


def length_parameter(description: str) -> dict[str, Any]:
    """A route's ``openapi_extra`` for the parameter."""
    schema = {"type": "integer", "minimum": 1}
    return {"parameters": [{"name": "length", "in": "query", "description": description, "schema": schema}]}


def requested_format(request: Request, code_format: CodeFormat) -> CodeFormat:
    """The tokenizer's format, or that of codes of the ``length`` that is asked for. Raises ``InvalidRequest``.

    Read here and not by FastAPI, whose look at the query would be paid by every request.
    """
    if not request.scope["query_string"] or not (given := request.query_params.getlist("length")):
        return code_format
    expected = f"{code_format.described_lengths} tokens"
    if len(given) > 1 or not _WHOLE.fullmatch(given[0]):
        raise invalid_value(_POINTER, "one whole number is expected", ", ".join(given)[:80], expected)
    try:
        return code_format.of_length(int(given[0]))
    except CodeError as error:
        raise invalid_value(_POINTER, str(error), int(given[0]), expected) from None
