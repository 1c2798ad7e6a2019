"""``POST /v1/images/generations``: generate, compatible with OpenAI's Images API."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.access.authorization import KeyedRoute, consume_quota
from service.api.bodies import read_json
from service.api.error_table import to_problem
from service.api.image_responses import as_base64, image_media_type
from service.api.schemas.generation import ImageObject, ImagesRequest, ImagesResponse
from service.api.state import ApiState, check_image_count
from service.engine import EngineError
from service.errors import ServiceError
from service.http.disconnects import run_while_connected
from service.http.openapi import answers, request_body
from service.http.problems import Problem, invalid_value
from service.imaging.encoding import OUTPUT_EXTENSIONS
from service.inference.model_info import ModelInfo
from service.operations.addresses import image_address
from service.operations.classes import ClassIndex
from service.operations.errors import UnknownClass
from service.operations.generation import Generation, random_seeds
from service.operations.rendering import SIDES

_SIZE = re.compile(r"([1-9][0-9]{1,3})x\1", re.ASCII)
_PHRASE = re.compile(
    r"(?:(?:an?|the)\s+)?(?:(?:photo|photograph|picture|image)\s+of\s+)?(?:(?:an?|the)\s+)?", re.IGNORECASE
)
_BODY = request_body(ImagesRequest, {"prompt": "cat", "n": 1, "response_format": "b64_json"})


class OpenAIRoute(KeyedRoute):
    """Adds a member ``error`` in OpenAI's form to problem documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler."""
        handle = super().get_route_handler()

        async def handle_and_shape(request: Request) -> Response:
            try:
                return await handle(request)
            except (Problem, ServiceError, EngineError) as error:
                problem = to_problem(error)
                problem.extensions["error"] = _error(problem)
                raise problem from problem.__cause__

        return handle_and_shape


router = APIRouter(tags=["images"], route_class=OpenAIRoute)


@router.post(
    "/v1/images/generations",
    summary="Generate images (OpenAI-compatible)",
    responses=answers(400, 404, 408, 413, 415, 422, 429, 503, 504, schema=ImagesResponse),
    openapi_extra=_BODY,
)
async def create_images(request: Request) -> Response:
    """Generates images for clients of OpenAI's Images API.

    `prompt` is the name of a class, optionally as `a photo of a cat`; other text is rejected. Images are returned as
    base64 or as URLs, or as both if `response_format` is absent, and scaled to `size`. Other members of OpenAI's API
    are ignored. Problem documents also have a member `error` in OpenAI's form.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    models = state.operations.models
    with timings.measure("read"):
        body = await read_json(request, ImagesRequest)
    if body.stream:
        raise invalid_value("/stream", "not supported; POST /v1/generate can stream events", True, "false")
    models.check(body.model)
    count = body.n or 1
    check_image_count(count, state.settings.max_generate, "/n")
    await consume_quota(request, count)
    side = _side(body.size, info.image_size)
    label = _class_of(body.prompt, models.classes)
    generation = Generation(label=label, settings=models.generator.presets["demo"], seeds=random_seeds(count))
    extension = body.output_format or "png"
    media_type = image_media_type(extension)
    quality = None if body.output_compression is None else max(1, body.output_compression)

    async def work() -> tuple[list[str], list[bytes] | None]:
        tokens = await generation.run(state.operations.engine, deadline=deadline, timings=timings)
        codes = info.code_format.to_text(tokens)
        if body.response_format == "url":
            return codes, None  # rendered when the URL is requested
        rendered = await state.operations.renderer.render(
            tokens, media_type, quality, side=side, deadline=deadline, timings=timings
        )
        return codes, rendered.files

    codes, files = await run_while_connected(request, work())
    items = [
        ImageObject(
            b64_json=None if files is None else as_base64(files[index]),
            revised_prompt=models.classes.names[label][0],
            code=code,
            seed=generation.seeds[index],
        )
        for index, code in enumerate(codes)
    ]
    if body.response_format != "b64_json":
        for item in items:
            item.url = _url(request, info, item.code, media_type, side=side, quality=quality)
    document = ImagesResponse(created=int(time.time()), output_format=extension, size=f"{side}x{side}", data=items)
    return Response(document.model_dump_json(exclude_none=True), media_type="application/json")


def _url(request: Request, info: ModelInfo, code: str, media_type: str, *, side: int, quality: int | None) -> str:
    address = image_address(info, code, OUTPUT_EXTENSIONS[media_type], size=side, quality=quality)
    return str(request.base_url).rstrip("/") + address


def _class_of(prompt: str, classes: ClassIndex) -> int:
    """The class that a prompt names. Raises ``UnknownClass`` or ``InvalidRequest``."""
    text = prompt.strip().rstrip(".")
    bare = text[match.end() :] if (match := _PHRASE.match(text)) else text
    try:
        label = classes.resolve(text, pointer="/prompt")
    except UnknownClass:
        label = classes.resolve(bare, pointer="/prompt")
    return cast("int", label)  # only None has no class


def _side(size: str | None, own: int) -> int:
    """Pixels of a side. Raises ``InvalidRequest`` for a size that is not a supported square."""
    if size is None or size == "auto":
        return own
    match = _SIZE.fullmatch(size)
    if match is None or int(match[1]) not in SIDES:
        allowed = f"auto, {own}x{own}, or another square of {SIDES[0]} to {SIDES[-1]} pixels a side"
        raise invalid_value("/size", "unsupported size", size[:20], allowed)
    return int(match[1])


def _error(problem: Problem) -> dict[str, str | None]:
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    elif problem.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error"
    place = problem.errors[0].pointer.removeprefix("/") if problem.errors else ""
    return {
        "message": problem.detail,
        "type": kind,
        "param": place or None,
        "code": problem.kind.slug.replace("-", "_"),
    }
