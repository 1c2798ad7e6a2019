"""The models on one device, as the engine calls them: arrays in, arrays out, from the one thread that owns them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import Generator, Tokenizer, load_generator, load_tokenizer
from models.errors import CheckpointError
from models.memory import is_out_of_memory, memory_bytes, release_memory
from models.registry import GENERATORS
from models.sampling_settings import SamplingSettings
from service.batch_limits import LARGEST_BATCH, find_batch_limit
from service.engine import Device, RowState, Stepped
from service.engine.protocol import LaneName
from service.facts import GeneratorFacts, ModelFacts
from service.settings import Settings
from service.stopwatch import cpu_seconds, wall_seconds

__all__ = ["ModelDevice", "ServedDevice", "open_device"]

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class ServedDevice(Device, Protocol):
    """A device that says what it serves."""

    @property
    def facts(self) -> ModelFacts:
        """The models on it."""


class ModelDevice:
    """A tokenizer, and its generator if there is one.

    ``batch_limits`` says by lane how many images run at once; a larger batch runs in parts. They are found by
    ``warm_up``, at most ``max_batch_size`` (0: no bound) and such that a batch takes ``batch_seconds`` at most. Where a
    batch does not fit into memory, its lane's limit becomes half of it for good, and the batch is run again in halves.
    """

    def __init__(
        self, tokenizer: Tokenizer, generator: Generator | None, *, max_batch_size: int = 0, batch_seconds: float = 0.5
    ) -> None:
        self._tokenizer = tokenizer
        self._generator = generator
        self._largest = max_batch_size or LARGEST_BATCH
        self._batch_seconds = batch_seconds
        self._out_of_memory = 0
        lanes: tuple[LaneName, ...] = ("encode", "decode", "generate") if generator else ("encode", "decode")
        self.batch_limits: dict[LaneName, int] = dict.fromkeys(lanes, self._largest)
        self._facts = ModelFacts(
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

    @property
    def facts(self) -> ModelFacts:
        """The models on it."""
        return replace(self._facts, batch_limits=self._limits())

    def _limits(self) -> dict[str, int]:
        return {str(lane): limit for lane, limit in self.batch_limits.items()}

    def status(self) -> dict[str, object]:
        """``batch_limits`` as they are now; ``out_of_memory``, how many batches did not fit; ``memory``, on a CUDA device
        its bytes by kind (see ``models.memory``), else None. May be called from any thread.
        """
        return {
            "batch_limits": self._limits(),
            "out_of_memory": self._out_of_memory,
            "memory": memory_bytes(self._tokenizer.device),
        }

    def encode(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Images uint8 [b, S, S, 3] -> ids int64 [b, K]."""
        return _joined(self._in_parts("encode", len(images), lambda part: self._tokenizer.encode(images[part])))

    def decode(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Ids int64 [b, K] -> images uint8 [b, S, S, 3]."""
        return _joined(self._in_parts("decode", len(tokens), lambda part: self._tokenizer.decode(tokens[part])))

    def step(self, rows: Sequence[RowState]) -> Stepped:
        """One sampling step of unfinished rows, in one forward pass: a pure function of their states.

        Raises ``ValueError`` or ``TypeError`` where a row is no state of this generator, and then moves none.
        """
        generator = self._need_generator()
        states = [
            generator.row(
                row.label,
                row.seed,
                cast("SamplingSettings", row.settings),  # checked there
                step=row.step,
                tokens=None if row.tokens is None else torch.from_numpy(row.tokens),
            )
            for row in rows
        ]
        parts = self._in_parts("generate", len(states), lambda part: generator.advance(states[part]))
        tokens, sampled, finished = (_joined(arrays) for arrays in zip(*parts, strict=True))
        return Stepped(tokens=tokens, sampled=sampled, finished=finished)

    def _in_parts(self, lane: LaneName, count: int, run: Callable[[slice], Result]) -> list[Result]:
        """Runs parts of at most the lane's limit; where one does not fit into memory, smaller ones from there on."""
        results: list[Result] = []
        done = 0
        while done < count or not results:
            size = min(self.batch_limits[lane], count - done)
            try:
                results.append(run(slice(done, done + size)))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._out_of_memory += 1
                if size <= 1:
                    raise
            else:
                done += size
                continue
            # Only now: while the error was handled, its traceback held the tensors of the batch that failed.
            release_memory(self._tokenizer.device)
            self.batch_limits[lane] = size // 2
            log.warning("a %s batch of %d does not fit into memory; from now on %d at once", lane, size, size // 2)
        return results

    def _need_generator(self) -> Generator:
        if self._generator is None:
            raise TypeError("no generator is loaded")
        return self._generator

    def warm_up(self) -> None:
        """Finds the limits by trying. What happens once on a device happens here, and not to the first request."""
        measure = cpu_seconds if self._tokenizer.device.type == "cpu" else wall_seconds
        for lane in self.batch_limits:
            self.batch_limits[lane] = find_batch_limit(
                self._trial(lane),
                largest=self._largest,
                seconds=self._batch_seconds,
                is_out_of_memory=is_out_of_memory,
                measure=measure,
            )
            release_memory(self._tokenizer.device)
        log.info("images of a batch, at most: %s", self.batch_limits)

    def _trial(self, lane: LaneName) -> Callable[[int], object]:
        """Runs a batch of a size, whatever the limit is."""
        noise, tokenizer = np.random.default_rng(0), self._tokenizer
        size, num_tokens, codes = tokenizer.image_size, tokenizer.num_tokens, tokenizer.codebook_size
        if lane == "encode":
            images = lru_cache(1)(lambda count: noise.integers(0, 256, (count, size, size, 3), np.uint8))
            return lambda count: tokenizer.encode(images(count))
        if lane == "decode":
            tokens = lru_cache(1)(lambda count: noise.integers(0, codes, (count, num_tokens), np.int64))
            return lambda count: tokenizer.decode(tokens(count))
        generator = self._need_generator()
        settings = generator.settings(guidance_scale=2.0, guidance_decay="constant")
        rows = lru_cache(1)(lambda count: [generator.row(0, seed, settings) for seed in range(count)])
        return lambda count: generator.advance(rows(count))


def _joined(parts: Sequence[Tensor]) -> npt.NDArray[Any]:
    """Tensors one after another as one array; of a single one, the same memory."""
    arrays = [part.numpy() for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


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
    models = ModelDevice(
        tokenizer,
        _open_generator(settings, tokenizer, device),
        max_batch_size=settings.max_batch_size,
        batch_seconds=settings.batch_seconds,
    )
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
