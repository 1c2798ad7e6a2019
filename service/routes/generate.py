"""``POST /v1/generate``: new images from a class."""

from __future__ import annotations

import secrets
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.responses import Response

from models.sampling_settings import SamplingSettings
from service.context import ServiceContext
from service.engine import GenerateItem
from service.media import OUTPUT_EXTENSIONS, OUTPUT_MEDIA_TYPES
from service.negotiation import choose_media_type, media_type_of, unsupported_content_type
from service.openapi import answers
from service.problems import InvalidRequest, ProblemDetail
from service.rendering import Rendered, as_base64, image_media_type, image_response, render
from service.schemas import EXAMPLE_CODE, EXAMPLE_TOKENS, GeneratedItem, GenerateRequest, GenerateResponse, parse_body
from service.uploads import read_body

__all__ = ["router"]

router = APIRouter(tags=["images"])

_MAX_SEED = 2**63 - 1
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": GenerateRequest.model_json_schema(),
                "example": {"class": "cat", "n": 2, "seed": 7, "preset": "demo"},
            }
        },
    }
}

_EXAMPLE = {
    "model": "titok-mini-32",
    "revision": "594725129161-p1",
    "generator_revision": "dc6b540e3b9e",
    "class_id": 10,
    "class_name": "cat",
    "settings": {"steps": 20, "guidance_scale": 6.0, "guidance_decay": "linear", "temperature": 2.5},
    "data": [
        {
            "index": 0,
            "tokens": EXAMPLE_TOKENS,
            "code": EXAMPLE_CODE,
            "seed": 7,
            "image": "/9j/4AAQSkZJRgABAQAAAQABAAD...",
            "content_type": "image/jpeg",
        }
    ],
}


@router.post(
    "/v1/generate",
    summary="Make new images of a class",
    response_model=GenerateResponse,
    responses=answers(
        *(400, 404, 406, 408, 413, 415, 422, 429, 503, 504), example=_EXAMPLE, binary=list(OUTPUT_EXTENSIONS)
    ),
    openapi_extra=_BODY,
)
async def generate(request: Request) -> Response:
    """Images with their tokens, codes and seeds as JSON; or one image itself, with `Accept: image/*`.

    The same class, settings and seed give the same image, whatever else the service is doing. Image i of a request has
    the seed `seed + i`.
    """
    context, stages = ServiceContext.of(request), request.state.stages
    facts, generator, deadline = context.facts, context.generator, context.deadline(request)
    content_type = media_type_of(request.headers.get("content-type"))
    if content_type != "application/json":
        raise unsupported_content_type(
            content_type, detail="not JSON", advice="Send application/json.", expected=["application/json"]
        )
    with stages.measure("read"):
        body = parse_body(GenerateRequest, await read_body(request, seconds=context.settings.body_timeout))
    context.check_model(body.model)
    context.check_count(body.n, context.settings.max_generate, "/n")
    label = context.classes.resolve(body.class_)
    settings = _settings(body, generator.presets[body.preset])
    seeds = _seeds(body)
    offers = ["application/json", *OUTPUT_MEDIA_TYPES] if body.n == 1 else ["application/json"]
    answer = choose_media_type(request.headers.get("accept"), offers)
    media_type = image_media_type(body.format) if answer == "application/json" else answer

    async def work() -> tuple[npt.NDArray[np.int64], Rendered]:
        items = [GenerateItem(label=label, seed=seed, settings=settings) for seed in seeds]
        with context.engine_call():
            generated = await context.engine.generate(items, deadline=deadline)
        context.note_timing(stages, generated.timing)
        ids = generated.tokens
        return ids, await render(context, ids, media_type, body.quality, deadline=deadline, stages=stages)

    tokens, rendered = await context.while_connected(request, work())
    codes = facts.code_format.to_text(tokens)
    if answer != "application/json":
        headers = {
            "X-Titok-Model": facts.name,
            "X-Titok-Revision": facts.revision,
            "X-Titok-Code": codes[0],
            "X-Titok-Seed": str(seeds[0]),
        }
        return image_response(rendered, media_type, headers)
    document = GenerateResponse(
        model=facts.name,
        revision=facts.revision,
        generator_revision=generator.revision,
        class_id=label,
        class_name=None if label is None else context.classes.names[label][0],
        settings=asdict(settings),
        data=[
            GeneratedItem(
                index=index,
                tokens=tokens[index].tolist(),
                code=codes[index],
                seed=seeds[index],
                image=as_base64(file),
                content_type=media_type,
            )
            for index, file in enumerate(rendered.files)
        ],
    )
    return Response(document.model_dump_json(), media_type="application/json")


def _settings(body: GenerateRequest, preset: SamplingSettings) -> SamplingSettings:
    changes = {
        name: getattr(body, name)
        for name in ("steps", "guidance_scale", "guidance_decay", "temperature")
        if getattr(body, name) is not None
    }
    return replace(preset, **changes)


def _seeds(body: GenerateRequest) -> list[int]:
    if body.seed is None:
        # Short enough for a person to copy, and for a JavaScript number.
        return [secrets.randbelow(2**32) for _ in range(body.n)]
    if body.seed + body.n - 1 > _MAX_SEED:
        raise InvalidRequest(
            f"Image {body.n} would have the seed {body.seed + body.n - 1}; the largest is {_MAX_SEED}.",
            errors=[
                ProblemDetail(
                    pointer="/seed", detail="too large for n images", value=body.seed, expected=f"0..{_MAX_SEED}"
                )
            ],
        )
    return [body.seed + index for index in range(body.n)]
