"""What Schemathesis cannot know of this service: image files, addresses that exist, and refusals that no schema can tell.

Loaded by Schemathesis (``hooks`` in ``schemathesis.toml``). Counts go to the file that ``TITOK_FUZZ_TALLY`` names.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.openapi.checks import RejectedPositiveData

from models.codes.packed import MEDIA_TYPE as PACKED_CODES
from models.sampling.settings import MAX_STEPS
from service.api.schemas.base import CODE_PATTERN, EXAMPLE_CODE, EXAMPLE_TOKENS
from service.imaging.formats import ACCEPTED_FORMATS
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import seeds

KNOWN_DIGEST = os.environ.get("TITOK_FUZZ_DIGEST", "0" * 64)
MODEL = "titok-mini-32"
MOST_STEPS = 4

UNTELLABLE: dict[str, str] = {
    "undecodable-image": "a schema cannot say what an image file is; most of those sent are damaged on purpose",
    "unsupported-media-type": "the damage has made a file look like a format that is not taken",
    "malformed-body": "base64 and data URIs have no form that a schema of strings could tell",
    "content-too-large": "how many images a request may ask for is a setting, which GET /v1/models tells",
    "not-acceptable": "several images do not fit into the one file that Accept asks for",
    "invalid-request": "see INVALID",
}
"""Problems that a request which conforms to its schema may get, with the reason."""

INVALID: dict[str, str] = {
    "image has": "the number of ids of an image depends on the tokenizer",
    "token id out of range": "the size of the codebook depends on the tokenizer",
    "a code has": "the length of a code depends on the tokenizer",
    "unused bits": "a pattern cannot express that the last bits of a code are zero",
    "not URL-safe base64": "the same",
    "packed codes come in whole groups": "the length of a packed code depends on the tokenizer",
    "not a file of packed codes": "bytes have no schema",
    "V in the header": "the same",
    "one weight for each image": "a schema cannot relate the lengths of two lists",
    "all weights are zero": "a schema cannot express a sum",
    "one entry for each token": "the number of positions depends on the tokenizer",
    "image index out of range": "positions refer to images of the same request",
    "a parameter of latents only": "a schema cannot relate two parameters",
    "a parameter of codes only": "the same",
    "a member of latents only": "the same",
    "so its latents are not sampled": "only a VAE has a posterior, which GET /v1/models tells",
    "decodes token ids, not latents": "the same",
    "Beside 'latents' the body has 'dtype'": "a schema could say this, but in many more lines",
    "unsupported size": "a pattern cannot express a square within bounds",
    "Previews are sent with": "a member of the body depends on a header",
    "whole number": "2.0 is an integer in JSON Schema, but not for the service",
    "equal to 9223372036854775807": "a bound of 63 bits is rounded where numbers are doubles",
}
"""Substrings of ``detail`` of ``invalid-request`` problems, with the reason."""

_tally: Counter[str] = Counter()
_excused: Counter[str] = Counter()
_images = st.sampled_from(list(seeds().values())) | mutated(seeds())

for name in ACCEPTED_FORMATS.values():
    schemathesis.openapi.media_type(name, _images)
for name in (PACKED_CODES, "application/octet-stream"):
    schemathesis.openapi.media_type(
        name, st.integers(1, 3).flatmap(lambda n: st.binary(min_size=48 * n, max_size=48 * n))
    )


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Asks for each type that the operation can answer with, in turn; and keeps sampling short."""
    digest = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode())
    answers = case.operation.definition.raw["responses"].get("200", {}).get("content", {})
    if answers and "Accept" not in (case.headers or {}) and digest % 3:
        offers = sorted(answers)
        case.headers = {**(case.headers or {}), "Accept": offers[digest % len(offers)]}
    if case.operation.path == "/v1/generate" and isinstance(case.body, dict):
        steps = case.body.get("steps")
        if steps is None or (isinstance(steps, int) and MOST_STEPS < steps <= MAX_STEPS):
            case.body = {**case.body, "steps": MOST_STEPS}


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any]) -> dict[str, Any]:
    """Every second time what exists: the model, a code of it, an image that is known."""
    known = {"model": MODEL, "tokenizer": MODEL, "code": EXAMPLE_CODE, "sha256": KNOWN_DIGEST}
    if path_parameters and zlib.crc32(repr(path_parameters).encode()) % 2:
        return {name: known.get(name, value) for name, value in path_parameters.items()}
    return path_parameters


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Every second time codes and tokens that are some, in place of those that only look like it."""
    if isinstance(body, dict) and zlib.crc32(repr(body).encode()) % 2:
        return {name: _real(name, value) for name, value in body.items()}
    return body


def _real(name: str, value: Any) -> Any:
    if name == "code" and _is_code(value):
        return EXAMPLE_CODE
    if name == "codes" and isinstance(value, list) and value and all(map(_is_code, value)):
        return [EXAMPLE_CODE] * min(len(value), 8)
    if name == "tokens" and _is_ids(value):
        return EXAMPLE_TOKENS
    if name == "tokens" and isinstance(value, list) and value and all(map(_is_ids, value)):
        return [EXAMPLE_TOKENS] * min(len(value), 8)
    return value


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(CODE_PATTERN, value, re.ASCII) is not None


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Counts."""
    _tally[f"{case.method} {case.operation.path} {response.status_code}"] += 1


@schemathesis.hook
def after_network_error(context: Any, case: Any, request: Any) -> None:
    """Counts those that got no answer."""
    _tally[f"{case.method} {case.operation.path} none"] += 1


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Drops refusals of requests that fit their schema, where the schema cannot tell the reason."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    slug = problem["type"].removeprefix("urn:titok:problem:")
    if slug not in UNTELLABLE or (slug == "invalid-request" and not any(text in problem["detail"] for text in INVALID)):
        return True
    _excused[slug] += 1
    return False


@atexit.register
def write() -> None:
    """The counts."""
    if path := os.environ.get("TITOK_FUZZ_TALLY"):
        Path(path).write_text(json.dumps({"statuses": _tally, "excused": _excused}))
