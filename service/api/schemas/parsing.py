"""Validates JSON bodies against their schemas."""

from __future__ import annotations

import codecs
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from service.api.schemas.base import StrictRequest
from service.errors import ErrorDetail
from service.http.problems import ContentTooLarge, InvalidRequest, MalformedBody

RequestT = TypeVar("RequestT", bound=StrictRequest)

_WORDS = {
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "string_type": "a text is expected",
    "bool_type": "true or false is expected",
    "list_type": "a list is expected",
    "missing": "this member is missing",
}


def parse_body(schema: type[RequestT], body: bytes, *, max_values: int) -> RequestT:
    """A JSON body as its schema. A byte order mark is ignored.

    Raises ``MalformedBody`` if it is no JSON, ``InvalidRequest`` if it does not fit, and ``ContentTooLarge`` for more than
    ``max_values`` values, before they are converted, or for too long a list.
    """
    # Every value but the first follows one of these; some may be parts of strings.
    if len(body) - len(body.translate(None, b",[{")) > max_values:
        raise ContentTooLarge(f"The JSON has more than {max_values} values. Split the request.")
    try:
        return schema.model_validate_json(body.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        reason = str(details[0].get("ctx", {}).get("error", details[0]["msg"]))
        raise MalformedBody(f"The body is not JSON: {reason}.", errors=[ErrorDetail(pointer="body", detail=reason)])
    places = [_place(detail, schema) for detail in details[:16]]
    first = places[0]
    kind = ContentTooLarge if details[0]["type"] == "too_long" else InvalidRequest
    raise kind(f"{first.pointer or 'The body'}: {first.detail}.", errors=places)


def _place(detail: ErrorDetails, schema: type[StrictRequest]) -> ErrorDetail:
    # A union reports each of its members, tagged in the location; the tag is no part of the client's document.
    path = [str(part) for part in detail["loc"] if part not in ("int", "str", "constrained-int")]
    value = detail["input"]
    if detail["type"] == "missing" or isinstance(value, dict | list):
        value = None
    elif isinstance(value, str):
        value = value[:80]
    context = detail.get("ctx", {})
    words = _WORDS.get(detail["type"], detail["msg"])
    if detail["type"] == "extra_forbidden" and len(path) == 1:
        context = {"expected": ", ".join(field.alias or name for name, field in schema.model_fields.items())}
        words = f"there is no such member; known members: {context['expected']}"
    expected = context.get("expected") or ", ".join(
        f"{key} {bound}" for key, bound in context.items() if key != "error"
    )
    return ErrorDetail(
        pointer="".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in path),
        detail=words,
        value=value,
        expected=str(expected) or None,
    )
