"""The models on one device, as the engine calls them: arrays in, arrays out, from the one thread that owns them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from models import Generator, Tokenizer, load_generator, load_tokenizer
from models.errors import CheckpointError
from models.registry import GENERATORS
from models.sampling_settings import SamplingSettings
from service.engine import Device, RowState, Stepped
from service.facts import GeneratorFacts, ModelFacts
from service.settings import Settings

__all__ = ["ModelDevice", "ServedDevice", "open_device"]

log = logging.getLogger(__name__)


class ServedDevice(Device, Protocol):
    """A device that says what it serves."""

    @property
    def facts(self) -> ModelFacts:
        """The models on it."""


class ModelDevice:
    """A tokenizer, and its generator if there is one."""

    def __init__(self, tokenizer: Tokenizer, generator: Generator | None) -> None:
        self._tokenizer = tokenizer
        self._generator = generator
        self.facts = ModelFacts(
            name=tokenizer.name,
            revision=tokenizer.revision,
            image_size=tokenizer.image_size,
            code_format=tokenizer.code_format,
            device=str(tokenizer.device),
            precision={
                "encoder": str(tokenizer.precision.encoder).removeprefix("torch."),
                "decoder": str(tokenizer.precision.decoder).removeprefix("torch."),
                "generator": str(tokenizer.precision.generator).removeprefix("torch."),
            },
            source=tokenizer.source,
            generator=None
            if generator is None
            else GeneratorFacts(
                revision=generator.revision, class_names=generator.class_names, presets=dict(generator.presets)
            ),
            batch_limits={},
        )

    def encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Images uint8 [b, S, S, 3] -> ids int64 [b, K]."""
        return cast("npt.NDArray[np.int64]", self._tokenizer.encode(images).numpy())

    def decode(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Ids int64 [b, K] -> images uint8 [b, S, S, 3]."""
        return cast("npt.NDArray[np.uint8]", self._tokenizer.decode(tokens).numpy())

    def step(self, rows: Sequence[RowState]) -> Stepped:
        """One sampling step of unfinished rows, in one forward pass: a pure function of their states.

        Raises ``ValueError`` or ``TypeError`` where a row is no state of this generator, and then moves none.
        """
        generator = self._need_generator()
        advance = generator.advance(
            [
                generator.row(
                    row.label,
                    row.seed,
                    cast("SamplingSettings", row.settings),  # checked there
                    step=row.step,
                    tokens=None if row.tokens is None else torch.from_numpy(row.tokens),
                )
                for row in rows
            ]
        )
        return Stepped(
            tokens=advance.tokens.numpy(), sampled=advance.sampled.numpy(), finished=advance.finished.numpy()
        )

    def _need_generator(self) -> Generator:
        if self._generator is None:
            raise TypeError("no generator is loaded")
        return self._generator

    def warm_up(self) -> None:
        """Runs every operation once, so that the first request does not pay for what happens once."""
        size = self._tokenizer.image_size
        self.decode(self.encode(np.zeros((1, size, size, 3), np.uint8)))
        if self._generator is not None:
            settings = self._generator.settings("fast")
            self.step([RowState(label=None, seed=0, settings=settings, step=0, tokens=None)])


def open_device(settings: Settings) -> ModelDevice:
    """Loads the models that the settings name, and warms them up. Called in the thread that will own them.

    Raises ``ValueError``, ``LookupError`` or ``CheckpointError`` with a message for the operator.
    """
    device = _choose_device(settings.devices)
    if device == "cpu":
        torch.set_num_threads(settings.device_threads)
    tokenizer = load_tokenizer(
        settings.tokenizer, weights=settings.tokenizer_weights, device=device, dtype=settings.dtype
    )
    if not tokenizer.is_discrete:
        raise ValueError(f"{tokenizer.name} is a VAE: it has no token ids to serve; choose another tokenizer")
    models = ModelDevice(tokenizer, _open_generator(settings, tokenizer, device))
    models.warm_up()
    return models


def _choose_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _open_generator(settings: Settings, tokenizer: Tokenizer, device: str) -> Generator | None:
    if settings.generator == "off":
        return None
    automatic = settings.generator in (None, "auto")
    name = tokenizer.name if automatic else str(settings.generator)
    # Weights that are not the variant's own make ids that the published generator was not trained on.
    strange = name not in GENERATORS or settings.tokenizer_weights is not None
    if automatic and strange and settings.generator_weights is None:
        log.warning("no generator: none is known for these tokenizer weights (TITOK_GENERATOR_WEIGHTS names one)")
        return None
    generator = load_generator(name, weights=settings.generator_weights, device=device, dtype=settings.dtype)
    if (generator.num_tokens, generator.codebook_size) != (tokenizer.num_tokens, tokenizer.codebook_size):
        raise CheckpointError(
            f"the generator makes {generator.num_tokens} tokens of {generator.codebook_size} codes, the tokenizer "
            f"{tokenizer.name} reads {tokenizer.num_tokens} of {tokenizer.codebook_size}"
        )
    return generator
