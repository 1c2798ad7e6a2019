"""What one training run does: frozen dataclasses, read from a TOML or YAML file that may hold nothing they don't know."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from models.networks.generator import GeneratorConfig
from models.networks.titok import SIZES, TiTokConfig, TransformerSize

__all__ = [
    "CodebookConfig",
    "ConfigError",
    "DataConfig",
    "DiscriminatorConfig",
    "GeneratorRun",
    "GeneratorTraining",
    "InitialConfig",
    "LossConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TokenizerRun",
    "read_config",
]

T = TypeVar("T")

# YAML 1.1 reads 1e-4, without a point, as text.
_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


class ConfigError(ValueError):
    """A key that does not exist, is missing, or has a value of the wrong kind; the message names it."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate goes: warm-up, then a cosine to ``final_lr`` times its height.

    ``steps`` is the whole run; ``--max-minutes`` can only shorten it. ``batch_size`` counts all devices together.
    """

    steps: int
    batch_size: int
    warmup_steps: int
    final_lr: float = 0.02
    ema_decay: float = 0.999
    evaluate_every: int = 250
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates and number format; weights are always float32.

    With a ``muon_lr`` the matrices of the blocks go to Muon and the rest, undecayed, to AdamW. Without one everything
    goes to AdamW, and the tensors that the published recipe names are not decayed. Matrix products run in
    ``precision``; ``auto`` is bfloat16 where the processor has instructions for it.
    """

    adamw_lr: float
    muon_lr: float | None = None
    adamw_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of what is minimised. ``adversarial_start`` and the discriminator's warm-up are steps.

    ``perceptual`` names the network whose features are compared: ``lite0`` (a package), ``convnext-small`` (logits, the
    published second stage) or ``lpips+convnext-small`` (the published one-stage recipe). ``semantic_weight`` is of the
    cosine distance between Lite0's pooled features: what is in the picture, wherever it is.
    """

    l2_weight: float = 1.0
    l1_weight: float = 0.0
    perceptual: Literal["lite0", "convnext-small", "lpips+convnext-small"] = "lite0"
    perceptual_weight: float = 0.0
    semantic_weight: float = 0.0
    grid_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    lecam_weight: float = 0.001
    quantizer_weight: float = 1.0
    kl_weight: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """``patch`` sees pixels, as published; ``features`` sees the features of the perceptual network Lite0."""

    kind: Literal["patch", "features"] = "patch"
    channels: int = 128
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """The life of the codebook.

    The quantizer is left out for the first ``quantizer_start`` steps; then codes are seeded from latents (at 0 the
    codebook begins as the network made it). A code that was not used for ``dead_after`` steps is seeded anew, until
    ``revive_until`` of the run.
    """

    quantizer_start: int = 150
    dead_after: int = 40
    revive_until: float = 0.85


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Views of the photographs: mirrored at random, moved by up to ``max_shift`` pixels."""

    max_shift: int = 4
    validation_images: int = 512


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """Weights to begin with: a variant's name, a file, a folder (relative to the working directory), or a hub id.

    ``weights`` says how a network without any begins (see ``models.training.initialisation``). ``checkpoint`` is a
    tokenizer of the same shape, or narrower: what is new starts so that it changes nothing. ``vqgan`` is the
    MaskGIT-VQGAN: in stage 1 its codes are the targets, in stage 2 its decoder is the pixel decoder.
    """

    weights: Literal["fan-in", "published"] = "fan-in"
    checkpoint: str | None = None
    vqgan: str | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Classes, masking and loss. ``tokenizer`` is a checkpoint folder or a hub id.

    ``classes`` maps names in the data to names of the generator's classes, whose order numbers them; without it the
    data's classes are taken as they are. ``initial`` is a generator of the same shape to go on from.
    """

    tokenizer: str
    classes: dict[str, str] = field(default_factory=dict)
    initial: str | None = None
    class_dropout: float = 0.1
    label_smoothing: float = 0.1
    visible_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TokenizerRun:
    """Everything ``titok train tokenizer`` reads from its file.

    ``one-stage`` trains all of the network on pixels; ``stage-1`` trains it to predict MaskGIT-VQGAN codes;
    ``stage-2`` trains the decoder on pixels, with encoder and codes frozen.
    """

    network: TiTokConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    recipe: Literal["one-stage", "stage-1", "stage-2"] = "one-stage"
    losses: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    data: DataConfig = field(default_factory=DataConfig)
    initial: InitialConfig = field(default_factory=InitialConfig)


@dataclass(frozen=True, kw_only=True)
class GeneratorRun:
    """Everything ``titok train generator`` reads from its file."""

    network: GeneratorConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    training: GeneratorTraining


def read_config(path: Path, kind: type[T]) -> T:
    """Reads ``path`` as a ``kind``, one of the two runs; :class:`ConfigError` names the key that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        table = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected sections such as network and schedule, not {table!r}")
    run: T = _build(kind, table, "")
    return run


def _build(kind: Any, table: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    if unknown := sorted(set(table) - set(fields)):
        known = ", ".join(sorted(fields))
        raise ConfigError(f"unknown key {where}{unknown[0]}; known here: {known}")
    needed = {
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(table)):
        raise ConfigError(f"missing key {where}{missing[0]}")
    values = {name: _value(hints[name], value, f"{where}{name}") for name, value in table.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where.rstrip('.')}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is TransformerSize and isinstance(value, str) and value in SIZES:
        return SIZES[value]
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a table")
        return _build(hint, value, f"{where}.")
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {value!r}")
        return value
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(
            _value(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is UnionType:  # every optional key is of one kind or not there
        return _value(arguments[0], value, where)
    if hint is float and (type(value) is int or (isinstance(value, str) and _EXPONENT.fullmatch(value))):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
