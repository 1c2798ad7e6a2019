"""Generate requests from JSON, and their results as JSON."""

from __future__ import annotations

from dataclasses import asdict, replace

from models.arrays import Ids
from service.api.image_responses import as_base64
from service.api.schemas.generation import GeneratedItem, GenerateRequest, GenerationFacts
from service.api.state import check_image_count
from service.operations.generation import Generation, consecutive_seeds, random_seeds
from service.operations.rendering import RenderedImages
from service.operations.served_models import ServedModels

_SETTINGS = ("steps", "guidance_scale", "guidance_decay", "temperature", "token_temperature")


def generation_from(body: GenerateRequest, models: ServedModels, *, max_images: int) -> Generation:
    """The generation that a body asks for. Raises ``OperationError``."""
    presets = models.generator.presets
    models.check(body.model)
    check_image_count(body.n, max_images, "/n")
    changes = {name: value for name in _SETTINGS if (value := getattr(body, name)) is not None}
    return Generation(
        label=models.classes.resolve(body.class_),
        settings=replace(presets[body.preset], **changes),
        seeds=random_seeds(body.n) if body.seed is None else consecutive_seeds(body.seed, body.n),
    )


def generation_facts(generation: Generation, models: ServedModels) -> GenerationFacts:
    """What reproduces the images, together with their seeds."""
    label = generation.label
    return GenerationFacts(
        model=models.info.name,
        revision=models.info.revision,
        generator_revision=models.generator.revision,
        class_id=label,
        class_name=None if label is None else models.classes.names[label][0],
        settings=asdict(generation.settings),
    )


def generated_items(
    generation: Generation,
    models: ServedModels,
    tokens: Ids,
    rendered: RenderedImages,
    media_type: str,
) -> list[GeneratedItem]:
    """The images of a response, from ids int64 [n, K] and their files of one media type."""
    codes = models.info.code_format.to_text(tokens)
    return [
        GeneratedItem(
            index=index,
            tokens=tokens[index].tolist(),
            code=codes[index],
            seed=generation.seeds[index],
            image=as_base64(file),
            content_type=media_type,
        )
        for index, file in enumerate(rendered.files)
    ]
