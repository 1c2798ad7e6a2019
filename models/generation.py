"""Image generator with loaded weights: class ids and seeds to token ids, which a tokenizer decodes.

::

    from models import load_generator
    generator = load_generator("titok-mini-32")
    ids = generator.generate([207, None], seeds=[1, 2], preset="demo")     # int64 [2, K]
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.arrays import Ids
from models.checkpoints.bundled import DEFAULT_VARIANT
from models.checkpoints.configuration import class_names, generator_config
from models.checkpoints.loading import Checkpoint, HubFile, load_strictly, open_checkpoint
from models.checkpoints.registry import GENERATORS, IMAGENET_CLASSES, PRESETS, GeneratorVariant
from models.errors import CheckpointError, UnknownVariantError
from models.networks.generator import GeneratorConfig, MaskGITViT, UViT, build_generator
from models.networks.skip_init import skip_init
from models.runtime.cpu_threads import BatchSplitter
from models.runtime.cuda_graphs import GraphedFunction
from models.runtime.precision import FORMATS, Precision
from models.runtime.transfers import PendingResults, transfers_for
from models.sampling.settings import SamplingSettings
from models.sampling.steps import SamplingRow, StepNoise, apply_guidance, pack_rows, sample_step, unpack_rows

# Between batch sizes, rounding changes guided logits by about 1e-4 (float32, measured on the published shapes). A step
# with a decision closer than ten times that (one in a hundred) is repeated unbatched.
_TOLERANCE = 1e-3


class StepResult(NamedTuple):
    """Rows after a step, on the host: ``tokens`` int64 [R, K], the mask id where unknown; ``sampled`` int64 [R, K], all
    tokens before some were masked again; ``finished`` bool [R].
    """

    tokens: Tensor
    sampled: Tensor
    finished: Tensor


class Generator:
    """A generator network with its weights on a device.

    Attributes: ``name``, ``revision``, ``num_tokens`` K, ``codebook_size`` V, ``num_classes``, ``class_names`` by id and
    ``class_sources``, their names in the training data (None if unknown), ``presets`` by name, ``source`` of the
    weights; ``stepper``, the function that runs on the device (``models.runtime.cuda_graphs``).
    """

    def __init__(
        self,
        network: MaskGITViT | UViT,
        *,
        variant: GeneratorVariant,
        names: Sequence[str],
        sources: tuple[str, ...] | None = None,
        digest: str,
        source: str,
        device: torch.device,
        dtype: str,
    ) -> None:
        config: GeneratorConfig = network.config
        self.name, self.presets, self.source, self.device = variant.name, variant.presets, source, device
        self.class_names, self.class_sources = tuple(names), sources
        self.num_tokens, self.codebook_size = config.image_seq_len, config.codebook_size
        self.num_classes = config.condition_num_classes
        self.precision = Precision.of(dtype, device)
        self.revision = f"{digest[:12]}{self.precision.generator.suffix}"
        self._mask_token = config.mask_token
        self._network = network.eval().requires_grad_(False).to(device)
        self._network.set_compute_dtype(self.precision.generator.dtype)
        self._predicting, self._float32 = self.precision.generator.on(device), FORMATS["float32"].on(device)
        self._transfers, self._splitter = transfers_for(device), BatchSplitter(device)
        # As in the tokenizer: close decisions are repeated in float32.
        self._is_batch_invariant = self.precision.generator.is_batch_invariant
        self._exact_variant = 0 if self.precision.generator.is_exact else 1
        self.stepper = GraphedFunction(
            self._step,
            example=lambda size: pack_rows([self.row(None, 0, self.settings())] * size).to(device),
            variants=self._variants,
        )

    @property
    def network(self) -> MaskGITViT | UViT:
        """The network with its weights, in evaluation mode, on the device."""
        return self._network

    def settings(self, preset: str | None = None, **changes: Any) -> SamplingSettings:
        """A preset (default ``published``) with ``changes``. Raises ``ValueError``."""
        name = preset or PRESETS[0]
        if name not in self.presets:
            raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(self.presets)}")
        unknown = set(changes) - {field.name for field in fields(SamplingSettings)}
        if unknown:
            raise ValueError(f"no sampling setting is called {', '.join(sorted(unknown))}")
        return replace(self.presets[name], **changes)

    def row(
        self, label: int | None, seed: int, settings: SamplingSettings, *, step: int = 0, tokens: Tensor | None = None
    ) -> SamplingRow:
        """The state of an image after ``step`` steps, with ``tokens`` int64 [K] in 0..V (V: masked; None: all masked).

        ``label`` in 0..num_classes-1, or None or -1 for no class. Raises ``ValueError``, and ``TypeError`` for
        ``settings`` that are not ``SamplingSettings``.
        """
        if not isinstance(settings, SamplingSettings):
            raise TypeError(f"expected SamplingSettings, not {type(settings).__name__}")
        label = self._check_label(label)
        if not 0 <= step < settings.steps:
            raise ValueError(f"step {step} is out of range 0..{settings.steps - 1}")
        if tokens is None:
            tokens = torch.full((self.num_tokens,), self._mask_token, dtype=torch.int64)
        elif tokens.dtype is not torch.int64 or tokens.shape != (self.num_tokens,):
            raise ValueError(f"expected tokens int64 [{self.num_tokens}], not {tokens.dtype} {list(tokens.shape)}")
        self._check_tokens(tokens)
        # Converted to int, so that a NumPy or torch integer is the same seed as its value.
        return SamplingRow(None if label < 0 else label, int(seed), settings, tokens.cpu(), int(step))

    def _check_label(self, label: int | None) -> int:
        """The class id, -1 for no class. Raises ``ValueError``."""
        if label is not None and not -1 <= label < self.num_classes:
            raise ValueError(f"class {label} is out of range 0..{self.num_classes - 1}")
        return -1 if label is None else int(label)

    def _check_tokens(self, tokens: Tensor) -> None:
        """Raises ``ValueError`` for ids out of range: on a CUDA device a wrong index would end the whole process."""
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) <= self._mask_token:
            raise ValueError(f"token ids are 0..{self.codebook_size - 1}, or {self._mask_token} for a masked one")

    @torch.inference_mode()
    def advance(self, rows: Sequence[SamplingRow]) -> StepResult:
        """One step of unfinished rows in one forward pass, with and without their classes. ``rows`` are not changed.

        In float32 the tokens are batch-invariant: a step with a decision so close that batch rounding can change it is
        repeated unbatched. In ``tf32x3`` it is repeated in float32.
        """
        # Guided rows come first: unconditional logits are computed for the first rows of a batch.
        order = sorted(range(len(rows)), key=lambda index: not rows[index].needs_unconditional)
        # Guided rows are spread evenly over the cores. Recorded graphs replay one batch at a time.
        parts = 1 if self.stepper.sizes else self._splitter.num_parts(len(rows))
        shares = [order[first::parts] for first in range(parts)]
        results = self._splitter.map(lambda share: self._submit([rows[index] for index in share])(), shares)
        order = [index for share in shares for index in share]
        tokens, sampled, margins = map(torch.cat, zip(*results, strict=True))
        if self._is_batch_invariant and len(rows) > 1 - self._exact_variant:
            close = (margins < _TOLERANCE).nonzero()[:, 0].tolist()
            repeated = [self._submit([rows[order[place]]], self._exact_variant) for place in close]
            for place, result in zip(close, repeated, strict=True):
                (tokens[place],), (sampled[place],), _ = result()
        back = torch.tensor(order).argsort()
        return StepResult(
            tokens[back], sampled[back], torch.tensor([row.step + 1 >= row.settings.steps for row in rows])
        )

    def _variants(self, size: int) -> Sequence[tuple[int, int]]:
        """The number of guided rows, none or all, and for a single row whether it is exact."""
        exact_variants = (0, 1) if self._is_batch_invariant and size == 1 and self._exact_variant else (0,)
        return [(guided, exact) for guided in (0, size) for exact in exact_variants]

    def _submit(self, rows: Sequence[SamplingRow], exact: int = 0) -> PendingResults:
        guided = sum(row.needs_unconditional for row in rows)
        if guided and self.stepper.sizes:
            guided = self.stepper.padded(len(rows))
        return self._transfers.run(pack_rows(rows), lambda table: self.stepper(table, guided, exact))

    def _step(self, table: Tensor, guided: int, exact: int) -> tuple[Tensor, Tensor, Tensor]:
        """A table of ``pack_rows`` on the device -> tokens and sampled int64 [R, K], and margins float32 [R].

        Unconditional logits are computed for the first ``guided`` rows; in float32 if ``exact`` is 1.
        """
        tokens, parameters = unpack_rows(table)
        count, labels = len(tokens), parameters.label
        with self._float32 if exact else self._predicting:
            logits = self._network(
                torch.cat([tokens, tokens[:guided]]), torch.cat([labels, torch.full_like(labels[:guided], -1)])
            )
        conditional = logits[:count]
        unconditional = torch.cat([logits[count:], conditional[guided:]])
        noise = StepNoise.of(parameters, self.num_tokens, self.codebook_size)
        logits = apply_guidance(parameters, conditional, unconditional)
        outcome = sample_step(parameters, logits, tokens, noise, mask_token=self._mask_token)
        return outcome.tokens, outcome.sampled, outcome.margin

    def step(self, rows: Sequence[SamplingRow]) -> None:
        """Advances unfinished rows in place by one step each (see :meth:`advance`)."""
        for row, tokens in zip(rows, self.advance(rows).tokens, strict=True):
            row.tokens = tokens
            row.step += 1

    def generate(
        self, labels: Sequence[int | None], *, seeds: Sequence[int], preset: str | None = None, **settings: Any
    ) -> Tensor:
        """Class ids (None or -1: no class) and a seed for each -> ids int64 [B, K].

        ``settings`` are fields of ``SamplingSettings`` that override the preset's. Raises ``ValueError``.
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
    def logits(self, tokens: Tensor | Ids, labels: Sequence[int | None] | Tensor | Ids) -> Tensor:
        """Ids int [B, K] in 0..V (V: masked) and class ids [B] (None or -1: no class) -> float32 [B, K, V].

        Raises ``ValueError`` for another shape or dtype, and for ids or classes out of range.
        """
        array = tokens.cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
        if (
            array.ndim != 2
            or array.shape[1] != self.num_tokens
            or len(labels) != len(array)
            or array.dtype.kind not in "iu"
        ):
            raise ValueError(
                f"expected integer tokens [B, {self.num_tokens}] and B labels, not {array.dtype} {list(array.shape)} "
                f"and {len(labels)} labels"
            )
        ids = torch.from_numpy(array.astype(np.int64))
        self._check_tokens(ids)
        classes = torch.tensor([self._check_label(label) for label in labels], dtype=torch.int64)
        with self._predicting:
            logits: Tensor = self._network(ids.to(self.device), classes.to(self.device))
        return logits.cpu()


def load_generator(
    name: str, *, weights: str | Path | HubFile | None = None, device: str = "cpu", dtype: str = "float32"
) -> Generator:
    """Loads the generator for the tokenizer ``name``. The arguments are those of ``load_tokenizer``. One of another name, by
    its ``weights``, has the presets of the shipped generator.

    Raises ``UnknownVariantError``, ``CheckpointError``, or ``ConfigError``.
    """
    variant = GENERATORS.get(name)
    if variant is None and weights is not None:
        variant = replace(GENERATORS[DEFAULT_VARIANT], name=name)
    if variant is None:
        raise UnknownVariantError(f"no generator is called {name!r}; choose one of {', '.join(GENERATORS)}")
    checkpoint = open_checkpoint(variant.weights if weights is None else weights)
    config = _config(variant, checkpoint)
    with skip_init():
        network = build_generator(config)
    load_strictly(network, checkpoint)
    return Generator(
        network,
        variant=variant,
        names=_class_names(checkpoint, config),
        sources=class_names(checkpoint.config, "sources"),
        digest=checkpoint.digest(),
        source=checkpoint.source,
        device=torch.device(device),
        dtype=dtype,
    )


def _config(variant: GeneratorVariant, checkpoint: Checkpoint) -> GeneratorConfig:
    if checkpoint.config is not None and "generator" in checkpoint.config.get("model", {}):
        # Old files lack model_type; the tensor names show it.
        by_prefix = "UViT" if any(key.startswith("in_blocks.") for key in checkpoint.tensors) else "ViT"
        return generator_config(checkpoint.config, model_type=by_prefix)  # type: ignore[arg-type]
    if variant.config is not None:
        return variant.config
    raise CheckpointError(f"{checkpoint.source} has no config.json with a model.generator section beside it")


def _class_names(checkpoint: Checkpoint, config: GeneratorConfig) -> tuple[str, ...]:
    names = class_names(checkpoint.config, "classes")
    if names is None and config.condition_num_classes == len(IMAGENET_CLASSES):
        return IMAGENET_CLASSES
    if names is None:
        return tuple(f"class {index}" for index in range(config.condition_num_classes))
    if len(names) != config.condition_num_classes:
        raise CheckpointError(f"{checkpoint.source} names {len(names)} classes, and has {config.condition_num_classes}")
    return names
