"""OpenAPI descriptions of request bodies and of responses, problems and event streams included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from service.http.problems import PROBLEM_MEDIA_TYPE
from service.http.sse import EVENT_STREAM, event

_BINARY = {"type": "string", "format": "binary"}
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:titok:problem:invalid-request"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was wrong, and what was expected."},
        "instance": {"type": "string", "description": "The request's id."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON pointer, or the part of the request."},
                    "detail": {"type": "string"},
                    "value": {"description": "The offending value."},
                    "expected": {"type": "string"},
                },
            },
        },
    },
}

_WHEN = {
    400: "An image cannot be decoded, or the body is malformed.",
    401: "No API key, or an unknown one.",
    403: "The API key does not have the role that the route requires.",
    404: "An unknown model, class or address.",
    406: "`Accept` allows no media type of the response.",
    408: "The body did not arrive in time.",
    409: "Tokens of another revision of the tokenizer.",
    410: "The URL names a revision that is no longer served.",
    413: "Too many bytes, pixels or images.",
    415: "A Content-Type, or an image format, that is not supported.",
    422: "A value is missing, of the wrong type, or out of range.",
    429: "A queue or the memory for bodies is full, or the rate limit is reached. Retry after `Retry-After`.",
    503: "Starting, draining, or no ready worker.",
    504: "The deadline has passed.",
}


def request_body(
    schema: type[BaseModel],
    example: Any,
    *,
    binary: Sequence[str] = (),
    others: Mapping[str, Any] = MappingProxyType({}),
    description: str | None = None,
) -> dict[str, Any]:
    """A route's ``openapi_extra``: a required body as JSON, as binary media types, or as ``others`` with their schemas."""
    content = {name: {"schema": _BINARY} for name in binary} | {name: {"schema": kind} for name, kind in others.items()}
    content["application/json"] = {"schema": schema.model_json_schema(), "example": example}
    body = {"required": True, "content": content}
    return {"requestBody": body if description is None else body | {"description": description}}


def answers(
    *problems: int,
    schema: type[BaseModel] | UnionType | None = None,
    binary: Sequence[str] = (),
    events: Mapping[str, type[BaseModel]] = MappingProxyType({}),
    description: str | None = None,
) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses``: its JSON, with an example made of ``schema``, of several the first; its binary media
    types, the events of its stream by name, its problems.
    """
    content: dict[str, Any] = {} if schema is None else {"application/json": {"example": example_of(schema)}}
    content |= {name: {"schema": _BINARY} for name in binary}
    if events:
        content[EVENT_STREAM] = _event_stream(events)
    success: dict[str, Any] = {"content": content} | ({} if schema is None else {"model": schema})
    if description is not None:
        success["description"] = description
    documented: dict[int | str, dict[str, Any]] = {HTTPStatus.OK.value: success}
    return documented | {status: _problem(status) for status in (*problems, 401, 403, 429)}


def example_of(schema: Any) -> Any:
    """An example of a pydantic model, or of a list or an optional one: the first example of each field, or that of the model
    that it holds. Optional fields without an example are left out.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return {
            name: field.examples[0] if field.examples else example_of(field.annotation)
            for name, field in schema.model_fields.items()
            if field.examples or field.is_required()
        }
    example = example_of(get_args(schema)[0])
    return [example] if get_origin(schema) is list else example


def _event_stream(events: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Schemas of a stream's items (OpenAPI 3.2), by event, and an example of each; ``error`` may end any stream."""
    data = {name: schema.model_json_schema() for name, schema in events.items()} | {"error": _PROBLEM_SCHEMA}
    schemas = [
        {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"const": name},
                "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": schema},
            },
        }
        for name, schema in data.items()
    ]
    example = b"".join(event(name, json.dumps(example_of(schema))) for name, schema in events.items())
    return {"itemSchema": {"oneOf": schemas}, "example": example.decode()}


def _problem(status: int) -> dict[str, Any]:
    example = {
        "type": "urn:titok:problem:...",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _WHEN[status],
    }
    return {
        "description": _WHEN[status],
        "content": {PROBLEM_MEDIA_TYPE: {"schema": _PROBLEM_SCHEMA, "example": example}},
    }
