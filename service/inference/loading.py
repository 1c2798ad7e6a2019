"""Loads the tokenizer and the generator that the settings name."""

from __future__ import annotations

import logging

from models import Generator, Tokenizer, load_generator, load_tokenizer
from models.checkpoints.registry import GENERATORS
from models.errors import CheckpointError
from service.settings import Settings

log = logging.getLogger(__name__)


def load_models(settings: Settings, device: str) -> tuple[Tokenizer, Generator | None]:
    """The tokenizer and the generator that the settings name. Raises ``ValueError``, ``LookupError`` or
    ``CheckpointError``.
    """
    tokenizer = load_tokenizer(
        settings.tokenizer,
        weights=settings.tokenizer_weights,
        device=device,
        dtype=settings.dtype,
        runtime=settings.runtime,
        cache_dir=settings.cache_dir,
    )
    return tokenizer, _load_generator(settings, tokenizer, device)


def _load_generator(settings: Settings, tokenizer: Tokenizer, device: str) -> Generator | None:
    if settings.generator == "off":
        return None
    automatic = settings.generator in (None, "auto")
    name = tokenizer.name if automatic else str(settings.generator)
    # Other tokenizer weights make ids that the published generator was not trained on.
    unsupported = name not in GENERATORS or settings.tokenizer_weights is not None
    if automatic and unsupported and settings.generator_weights is None:
        log.warning("no generator is known for these tokenizer weights; TITOK_GENERATOR_WEIGHTS sets one")
        return None
    generator = load_generator(name, weights=settings.generator_weights, device=device, dtype=settings.dtype)
    if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
        raise CheckpointError(
            f"the generator makes {generator.num_tokens} tokens of {generator.codebook_size} codes, the tokenizer "
            f"{tokenizer.name} reads {tokenizer.num_tokens} of {tokenizer.codebook_size}"
        )
    return generator
