"""A generator ready for work: classes and seeds in, token ids out; a tokenizer turns those into images.

::

    from models import load_generator
    generator = load_generator("titok-mini-32")
    ids = generator.generate([207, None], seeds=[1, 2], preset="demo")     # int64 [2, K]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.checkpoints.configuration import class_names, class_sources, generator_config
from models.checkpoints.imagenet import IMAGENET_CLASSES
from models.checkpoints.loading import Checkpoint, HubFile, load_strictly, open_checkpoint
from models.checkpoints.registry import GENERATORS, PRESETS, GeneratorVariant
from models.errors import CheckpointError, UnknownVariantError
from models.networks.generator import GeneratorConfig, MaskGITViT, UViT, build_generator
from models.networks.skip_init import skip_init
from models.runtime.cpu_threads import BatchSplitter
from models.runtime.cuda_graphs import GraphedFunction
from models.runtime.precision import FORMATS, Precision
from models.runtime.transfers import PendingResults, transfers_for
from models.sampling.settings import SamplingSettings
from models.sampling.steps import SamplingRow, StepNoise, guide, pack, sample_step, unpack

__all__ = ["Advance", "Generator", "load_generator"]

# Rounding moves guided logits between batch sizes by about 1e-4 (float32, measured on the published shapes); a decision
# closer than ten times that, one in a hundred steps, is made by the row alone.
_TOLERANCE = 1e-3


class Advance(NamedTuple):
    """Rows after a step: ``tokens`` int64 [R, K], the mask id where unknown; ``sampled`` int64 [R, K], the guess of every
    token before some were masked again; ``finished`` bool [R]. On the host.
    """

    tokens: Tensor
    sampled: Tensor
    finished: Tensor


class Generator:
    """A network with its weights on a device.

    Attributes: ``name``, ``revision``, ``num_tokens`` K, ``codebook_size`` V, ``num_classes``, ``class_names`` by id and
    ``class_sources``, what the training data calls them (None where that is not known), ``presets`` by name, ``source``
    of the weights; ``stepper``, what is run on the device (``models.runtime.cuda_graphs``).
    """

    def __init__(
        self,
        network: MaskGITViT | UViT,
        *,
        variant: GeneratorVariant,
        names: Sequence[str],
        sources: Sequence[str] | None = None,
        digest: str,
        source: str,
        device: torch.device,
        dtype: str,
    ) -> None:
        config: GeneratorConfig = network.config
        self.name = variant.name
        self.presets = variant.presets
        self.class_names = tuple(names)
        self.class_sources = None if sources is None else tuple(sources)
        self.source = source
        self.device = device
        self.num_tokens, self.codebook_size = config.image_seq_len, config.codebook_size
        self.num_classes = config.condition_num_classes
        self.precision = Precision.of(dtype, device)
        self._mask_token = config.mask_token
        self._network = network.eval().requires_grad_(False).to(device)
        self._network.set_compute_dtype(self.precision.generator.dtype)
        self._predicting = self.precision.generator.on(device)
        self._transfers, self._cores = transfers_for(device), BatchSplitter(device)
        self.revision = f"{digest[:12]}{self.precision.generator.suffix}"
        self._exact = FORMATS["float32"].on(device)
        # As for the tokenizer: a row alone is stepped in float32.
        self._alone = 0 if self.precision.generator.is_exact else 1
        self.stepper = GraphedFunction(
            self._step,
            example=lambda size: pack([self.row(None, 0, self.settings())] * size).to(device),
            variants=self._variants,
        )

    @property
    def num_parameters(self) -> int:
        """Weights in the network."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def settings(self, preset: str | None = None, **changes: Any) -> SamplingSettings:
        """A preset (``published`` unless named), with single members changed. Raises ``ValueError``."""
        name = preset or PRESETS[0]
        if name not in self.presets:
            raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(self.presets)}")
        unknown = set(changes) - set(SamplingSettings.__dataclass_fields__)
        if unknown:
            raise ValueError(f"no sampling setting is called {', '.join(sorted(unknown))}")
        return replace(self.presets[name], **changes)

    def row(
        self, label: int | None, seed: int, settings: SamplingSettings, *, step: int = 0, tokens: Tensor | None = None
    ) -> SamplingRow:
        """An image to sample, or to go on sampling: ``step`` steps are done, which gave ``tokens`` int64 [K] in 0..V
        (V: masked; None: all of them). ``label`` in 0..num_classes-1, or None or -1 for no class.

        Raises ``ValueError``, and ``TypeError`` for other settings than ``SamplingSettings``.
        """
        if not isinstance(settings, SamplingSettings):
            raise TypeError(f"expected SamplingSettings, not {type(settings).__name__}")
        if label is not None and not -1 <= label < self.num_classes:
            raise ValueError(f"class {label} is out of range 0..{self.num_classes - 1}")
        if not 0 <= step < settings.steps:
            raise ValueError(f"step {step} is out of range 0..{settings.steps - 1}")
        if tokens is None:
            tokens = torch.full((self.num_tokens,), self._mask_token, dtype=torch.int64)
        elif tokens.dtype is not torch.int64 or tokens.shape != (self.num_tokens,):
            raise ValueError(f"expected tokens int64 [{self.num_tokens}], not {tokens.dtype} {list(tokens.shape)}")
        elif not 0 <= int(tokens.min()) <= int(tokens.max()) <= self._mask_token:
            # A wrong index takes a CUDA device down for the whole process.
            raise ValueError(f"token ids are 0..{self.codebook_size - 1}, or {self._mask_token} for a masked one")
        # Plain numbers, so that a NumPy or torch integer is the same seed as its value.
        label = int(label) if label is not None and label >= 0 else None
        return SamplingRow(label, int(seed), settings, tokens.cpu(), int(step))

    @torch.inference_mode()
    def advance(self, rows: Sequence[SamplingRow]) -> Advance:
        """One step of unfinished rows in one forward pass, with and without their classes; the rows are not changed.

        In float32 a row's tokens do not depend on the other rows: a decision so close that the rounding of a larger
        batch could make it is made again by the row on its own. In ``tf32x3`` the same is done in float32.
        """
        # Guided rows come first, so that the network's second half is that of a leading part.
        order = sorted(range(len(rows)), key=lambda index: not rows[index].needs_unconditional)
        # Every core gets as many of them as the others. What is recorded replays one batch at a time.
        parts = 1 if self.stepper.sizes else self._cores.parts(len(rows))
        shares = [order[first::parts] for first in range(parts)]
        results = self._cores.map(lambda share: self._submit([rows[index] for index in share])(), shares)
        order = [index for share in shares for index in share]
        tokens, sampled, margins = map(torch.cat, zip(*results, strict=True))
        if self._decides_alone and len(rows) > 1 - self._alone:
            close = (margins < _TOLERANCE).nonzero()[:, 0].tolist()
            alone = [self._submit([rows[order[place]]], self._alone) for place in close]
            for place, arriving in zip(close, alone, strict=True):
                (tokens[place],), (sampled[place],), _ = arriving()
        back = torch.tensor(order).argsort()
        return Advance(tokens[back], sampled[back], torch.tensor([row.step + 1 >= row.settings.steps for row in rows]))

    @property
    def _decides_alone(self) -> bool:
        return self.precision.generator.rounds_like_float32

    def _variants(self, size: int) -> Sequence[tuple[int, int]]:
        """No row is guided, or all of them are treated so; one alone also exactly, where that makes a difference."""
        exactly = (0, 1) if self._decides_alone and size == 1 and self._alone else (0,)
        return [(guided, exact) for guided in (0, size) for exact in exactly]

    def _submit(self, rows: Sequence[SamplingRow], exactly: int = 0) -> PendingResults:
        guided = sum(row.needs_unconditional for row in rows)
        if guided and self.stepper.sizes:
            guided = self.stepper.padded(len(rows))
        return self._transfers.run(pack(rows), lambda table: self.stepper(table, guided, exactly))

    def _step(self, table: Tensor, guided: int, exactly: int) -> tuple[Tensor, Tensor, Tensor]:
        """A table of ``pack`` on the device, whose first ``guided`` rows get unconditional logits (no others need them) ->
        tokens and guesses int64 [R, K], and margins float32 [R]; in float32 if ``exactly`` is 1.
        """
        tokens, parameters = unpack(table)
        count, labels = len(tokens), parameters.label
        with self._exact if exactly else self._predicting:
            logits = self._network(
                torch.cat([tokens, tokens[:guided]]), torch.cat([labels, torch.full_like(labels[:guided], -1)])
            )
        conditional = logits[:count]
        unconditional = torch.cat([logits[count:], conditional[guided:]])
        noise = StepNoise.of(parameters, self.num_tokens, self.codebook_size)
        logits = guide(parameters, conditional, unconditional)
        outcome = sample_step(parameters, logits, tokens, noise, mask_token=self._mask_token)
        return outcome.tokens, outcome.sampled, outcome.margin

    def step(self, rows: Sequence[SamplingRow]) -> None:
        """Advances unfinished rows by one step each (see :meth:`advance`)."""
        for row, tokens in zip(rows, self.advance(rows).tokens, strict=True):
            row.tokens = tokens
            row.step += 1

    def generate(
        self, labels: Sequence[int | None], *, seeds: Sequence[int], preset: str | None = None, **settings: Any
    ) -> Tensor:
        """Class ids (None or -1: no class) and one seed each -> ids int64 [B, K].

        ``settings`` are members of ``SamplingSettings`` that differ from the preset's. Raises ``ValueError``.
        """
        if len(labels) != len(seeds):
            raise ValueError(f"{len(labels)} labels need as many seeds, not {len(seeds)}")
        chosen = self.settings(preset, **settings)
        rows = [self.row(label, seed, chosen) for label, seed in zip(labels, seeds, strict=True)]
        if not rows:
            return torch.empty(0, self.num_tokens, dtype=torch.int64)
        for _ in range(chosen.steps):
            self.step(rows)
        return torch.stack([row.tokens for row in rows])

    @torch.inference_mode()
    def logits(self, tokens: Tensor, labels: Sequence[int | None]) -> Tensor:
        """Ids int64 [B, K] in 0..V (V: masked) and class ids (None or -1: no class) -> float32 [B, K, V]."""
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens or len(labels) != len(tokens):
            raise ValueError(
                f"expected tokens [B, {self.num_tokens}] and B labels, not {list(tokens.shape)}, {len(labels)}"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) <= self._mask_token:
            raise ValueError(f"token ids are 0..{self.codebook_size - 1}, or {self._mask_token} for a masked one")
        for label in labels:
            if label is not None and not -1 <= label < self.num_classes:
                raise ValueError(f"class {label} is out of range 0..{self.num_classes - 1}")
        ids = torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
        with self._predicting:
            logits: Tensor = self._network(tokens.to(self.device, torch.int64), ids.to(self.device))
        return logits.cpu()


def load_generator(
    name: str, *, weights: str | Path | HubFile | None = None, device: str = "cpu", dtype: str = "float32"
) -> Generator:
    """Loads the generator of the tokenizer ``name``; the arguments are those of ``load_tokenizer``.

    Raises ``UnknownVariantError``, ``CheckpointError``, or ``ConfigError``.
    """
    variant = GENERATORS.get(name)
    if variant is None:
        raise UnknownVariantError(f"no generator is called {name!r}; there are {', '.join(GENERATORS)}")
    checkpoint = open_checkpoint(variant.weights if weights is None else weights)
    config = _config(variant, checkpoint)
    with skip_init():
        network = build_generator(config)
    load_strictly(network, checkpoint)
    return Generator(
        network,
        variant=variant,
        names=_names(checkpoint, config),
        sources=None if checkpoint.config is None else class_sources(checkpoint.config),
        digest=checkpoint.digest(),
        source=checkpoint.source,
        device=torch.device(device),
        dtype=dtype,
    )


def _config(variant: GeneratorVariant, checkpoint: Checkpoint) -> GeneratorConfig:
    if checkpoint.config is not None and "generator" in checkpoint.config.get("model", {}):
        # Old files do not say which network they hold; the names of its tensors do.
        by_prefix = "UViT" if any(key.startswith("in_blocks.") for key in checkpoint.tensors) else "ViT"
        return generator_config(checkpoint.config, model_type=by_prefix)  # type: ignore[arg-type]
    if variant.config is not None:
        return variant.config
    raise CheckpointError(f"{checkpoint.source} has no config.json with a model.generator section beside it")


def _names(checkpoint: Checkpoint, config: GeneratorConfig) -> Sequence[str]:
    names = class_names(checkpoint.config) if checkpoint.config is not None else None
    if names is None:
        names = IMAGENET_CLASSES if config.condition_num_classes == len(IMAGENET_CLASSES) else None
    if names is None:
        return [f"class {index}" for index in range(config.condition_num_classes)]
    if len(names) != config.condition_num_classes:
        raise CheckpointError(f"{checkpoint.source} names {len(names)} classes, and has {config.condition_num_classes}")
    return names
