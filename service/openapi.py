"""What the OpenAPI document says of answers that are no JSON objects of ours: problems and pictures."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from service.problems import PROBLEM_MEDIA_TYPE

__all__ = ["image_answers", "problems"]

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
    404: "An unknown model, class or address.",
    406: "`Accept` allows no answer that this route can give.",
    408: "The body did not arrive in time.",
    409: "Tokens of another revision of the tokenizer.",
    413: "Too many bytes, pixels or images.",
    415: "A Content-Type, or an image format, that is not taken.",
    422: "A value is missing, of the wrong type, or out of range.",
    429: "The queue is full; `Retry-After` says when to come back.",
    503: "Starting, draining, or no ready worker.",
    504: "The deadline has passed.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries of ``responses=`` for problem documents."""
    return {
        status: {
            "description": _WHEN[status],
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": _PROBLEM_SCHEMA,
                    "example": {
                        "type": "urn:titok:problem:...",
                        "title": HTTPStatus(status).phrase,
                        "status": status,
                        "detail": _WHEN[status],
                    },
                }
            },
        }
        for status in (*statuses, 401)
    }


def image_answers(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """The entry of ``responses=`` for a picture."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The image.", "content": dict.fromkeys(media_types, binary)}}
