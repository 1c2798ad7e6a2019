"""``POST /v1/generate``: images of a class."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from models.arrays import Ids
from service.api.access.authorization import KeyedRoute, consume_quota
from service.api.bodies import read_json
from service.api.error_table import to_problem
from service.api.generation import generated_items, generation_facts, generation_from
from service.api.generation_stream import GenerationStream
from service.api.image_responses import image_media_type, image_response, model_headers
from service.api.schemas.generation import GeneratedItem, GenerateRequest, GenerateResponse, GenerationFacts, StepEvent
from service.api.state import ApiState
from service.errors import ErrorDetail
from service.http.disconnects import run_while_connected
from service.http.negotiation import choose_media_type
from service.http.openapi import answers, request_body
from service.http.problems import InvalidRequest
from service.http.sse import EVENT_STREAM, EventStream
from service.imaging.encoding import OUTPUT_EXTENSIONS, OUTPUT_MEDIA_TYPES
from service.operations.rendering import RenderedImages

router = APIRouter(tags=["images"], route_class=KeyedRoute)

_BODY = request_body(GenerateRequest, {"class": "cat", "n": 2, "seed": 7, "preset": "demo"})

_EVENTS: dict[str, type[BaseModel]] = {"step": StepEvent, "image": GeneratedItem, "done": GenerationFacts}


@router.post(
    "/v1/generate",
    summary="Generate images of a class",
    responses=answers(
        *(400, 404, 406, 408, 413, 415, 422, 429, 503, 504),
        schema=GenerateResponse,
        binary=list(OUTPUT_EXTENSIONS),
        events=_EVENTS,
    ),
    openapi_extra=_BODY,
)
async def generate(request: Request) -> Response:
    """Returns images with their tokens, codes and seeds as JSON, or a single image with `Accept: image/*`.

    The same class, settings and seed always give the same image. Image i of a request has the seed `seed + i`.

    `Accept: text/event-stream` streams server-sent events: `step` after every sampling step of each image, with the
    tokens known so far and, with `"preview": true`, often a preview image; `image` for each finished image, as an item of
    `data` in the JSON response; `done` with the other members of that response. An `error` event with a problem document
    may end the stream. Errors before the first event are ordinary error responses.
    """
    state, timings = ApiState.of(request), request.state.timings
    info, deadline = state.info, state.deadline(request)
    await state.operations.engine.wait_for_room("generate", deadline=deadline)
    with timings.measure("read"):
        body = await read_json(request, GenerateRequest)
    operations = state.operations
    generation = generation_from(body, operations.models, max_images=state.settings.max_generate)
    await consume_quota(request, body.n)
    offers = ["application/json", *(OUTPUT_MEDIA_TYPES if body.n == 1 else ()), EVENT_STREAM]
    answer = choose_media_type(request.headers.get("accept"), offers)
    if body.preview and answer != EVENT_STREAM:
        raise InvalidRequest(
            f"Previews are sent with step events only. Send Accept: {EVENT_STREAM}, or omit 'preview'.",
            errors=[ErrorDetail(pointer="/preview", detail=f"needs Accept: {EVENT_STREAM}", value=True)],
        )
    media_type = answer if answer in OUTPUT_MEDIA_TYPES else image_media_type(body.format)
    if answer == EVENT_STREAM:
        stream = GenerationStream(
            operations=operations,
            generation=generation,
            media_type=media_type,
            quality=body.quality,
            previews=body.preview,
            deadline=deadline,
            timings=timings,
        )
        return EventStream(stream.events(), to_problem=to_problem)

    async def work() -> tuple[Ids, RenderedImages]:
        ids = await generation.run(operations.engine, deadline=deadline, timings=timings)
        return ids, await operations.renderer.render(ids, media_type, body.quality, deadline=deadline, timings=timings)

    tokens, rendered = await run_while_connected(request, work())
    if answer != "application/json":
        [code] = info.code_format.to_text(tokens)
        return image_response(rendered, media_type, model_headers(info, Code=code, Seed=str(generation.seeds[0])))
    facts = generation_facts(generation, operations.models)
    items = generated_items(generation, operations.models, tokens, rendered, media_type)
    document = GenerateResponse(**facts.model_dump(), data=items)
    return Response(document.model_dump_json(), media_type="application/json")
