"""``GET /v1/models``: the models served, their properties and limits."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from models.codes.latents import DTYPES
from service.api.access.authorization import KeyedRoute
from service.api.schemas.models import (
    ClassEntry,
    ClassList,
    GeneratorEntry,
    LatentsEntry,
    Limits,
    ModelEntry,
    ModelList,
    SamplingValues,
)
from service.api.state import ApiState
from service.http.openapi import answers

router = APIRouter(tags=["models"], route_class=KeyedRoute)

_STARTED = int(time.time())


def _entry(state: ApiState) -> ModelEntry:
    info = state.info
    codes = info.codes
    generator = info.generator
    return ModelEntry(
        id=info.name,
        created=_STARTED,
        revision=info.revision,
        image_size=info.image_size,
        kind="vae" if codes is None else "vq",
        num_tokens=info.latent_format.num_tokens,
        min_tokens=codes.min_tokens if codes else info.latent_format.num_tokens,
        prefix_decodable=codes is not None and codes.is_prefix_decodable,
        codebook_size=codes.codebook_size if codes else 0,
        bits_per_token=codes.bits if codes else 0,
        code_bytes=codes.num_bytes if codes else 0,
        code_characters=codes.num_characters if codes else 0,
        latents=LatentsEntry(shape=info.latent_format.shape, dtypes=DTYPES),
        precision=dict(info.precision),
        generator=None
        if generator is None
        else GeneratorEntry(
            revision=generator.revision,
            num_classes=len(generator.class_names),
            presets={name: SamplingValues.model_validate(preset) for name, preset in generator.presets.items()},
        ),
        limits=Limits.model_validate(state.settings),
    )


@router.get("/v1/models", summary="List models", responses=answers(503, schema=ModelList))
async def list_models(request: Request) -> ModelList:
    """Returns the tokenizer served, with its generator if there is one."""
    return ModelList(data=[_entry(ApiState.of(request))])


@router.get("/v1/models/{model}", summary="Get a model", responses=answers(404, 503, schema=ModelEntry))
async def show_model(request: Request, model: str) -> ModelEntry:
    """Returns revision, sizes, presets and limits of a model."""
    state = ApiState.of(request)
    state.operations.models.check(model)
    return _entry(state)


@router.get(
    "/v1/models/{model}/classes",
    summary="List or search classes",
    responses=answers(404, 422, 503, schema=ClassList),
)
async def list_classes(
    request: Request,
    model: str,
    q: Annotated[str | None, Query(max_length=80, description="Search text: only classes with similar names.")] = None,
) -> ClassList:
    """Returns the classes of the generator. Every name is accepted by `/v1/generate`, in upper or lower case."""
    state = ApiState.of(request)
    state.operations.models.check(model)
    classes = state.operations.models.classes
    ids = range(len(classes)) if q is None else classes.search(q)
    data = [ClassEntry(id=index, name=classes.names[index][0], names=classes.names[index]) for index in ids]
    return ClassList(model=model, data=data)
