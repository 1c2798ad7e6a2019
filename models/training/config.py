"""Configuration of a training run: frozen dataclasses, read from a TOML or YAML file; unknown keys are errors."""

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

T = TypeVar("T", bound="TrainingRun")

# YAML 1.1 reads 1e-4, without a point, as text.
_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


class ConfigError(ValueError):
    """A key that is unknown, missing, or has a value of the wrong type; the message names it."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length of the run and learning-rate schedule: warm-up, then a cosine down to ``final_lr`` times the peak.

    ``--max-minutes`` can end a run before ``steps``. ``batch_size`` is that of all devices together.
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

    With ``muon_lr`` the matrices of the blocks are trained by Muon and the rest by AdamW without weight decay. Otherwise
    AdamW trains everything, with weight decay on the same tensors as the published recipe. Matrix products run in
    ``precision``; ``auto`` is bfloat16 if the processor has instructions for it.
    """

    adamw_lr: float
    muon_lr: float | None = None
    adamw_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses. ``adversarial_start`` is a step.

    ``perceptual`` names the network whose features are compared: ``lite0`` (a package), ``convnext-small`` (logits, the
    published second stage) or ``lpips+convnext-small`` (the published one-stage recipe). ``semantic_weight`` weighs the
    cosine distance between Lite0's pooled features, which ignores positions.
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
    """``patch`` classifies pixels, as published; ``features`` classifies the features of Lite0."""

    kind: Literal["patch", "features"] = "patch"
    channels: int = 128
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Initialisation of codes.

    For the first ``quantizer_start`` steps latents are not quantized; then codes are initialised from latents (0 keeps
    the network's initialisation). Until the share ``revive_until`` of the run, a code that was not used for
    ``dead_after`` steps is initialised again.
    """

    quantizer_start: int = 150
    dead_after: int = 40
    revive_until: float = 0.85


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Augmentation, random flips and shifts by up to ``max_shift`` pixels, and the number of validation images."""

    max_shift: int = 4
    validation_images: int = 512


@dataclass(frozen=True, kw_only=True)
class InitialConfig:
    """Initial weights: a variant's name, a file, a folder (relative to the working directory), or a hub id.

    ``weights`` initialises a network without a checkpoint (see ``models.training.initialisation``). ``checkpoint`` is a
    tokenizer of the same shape, or a smaller one whose function is kept. ``vqgan`` is the MaskGIT-VQGAN: in stage 1 its
    codes are the targets, in stage 2 its decoder is the pixel decoder.
    """

    weights: Literal["fan-in", "published"] = "fan-in"
    checkpoint: str | None = None
    vqgan: str | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Classes, masking and loss. ``tokenizer`` is a checkpoint folder or a hub id.

    ``classes`` maps class names of the data to the generator's, in the order of its labels; by default the data's
    classes are used. ``initial`` is a generator of the same shape to continue from.
    """

    tokenizer: str
    classes: dict[str, str] = field(default_factory=dict)
    initial: str | None = None
    class_dropout: float = 0.1
    label_smoothing: float = 0.1
    visible_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What the configs of tokenizers and generators share."""

    schedule: ScheduleConfig
    optimizer: OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerRun(TrainingRun):
    """The config of ``titok train tokenizer``.

    ``one-stage`` trains all of the network on pixels; ``stage-1`` trains it to predict MaskGIT-VQGAN codes;
    ``stage-2`` trains the decoder on pixels, with encoder and codes frozen.
    """

    network: TiTokConfig
    recipe: Literal["one-stage", "stage-1", "stage-2"] = "one-stage"
    losses: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    data: DataConfig = field(default_factory=DataConfig)
    initial: InitialConfig = field(default_factory=InitialConfig)


@dataclass(frozen=True, kw_only=True)
class GeneratorRun(TrainingRun):
    """The config of ``titok train generator``."""

    network: GeneratorConfig
    training: GeneratorTraining


def read_config(path: Path, kind: type[T]) -> T:
    """Reads a :class:`TokenizerRun` or :class:`GeneratorRun`. Raises :class:`ConfigError`, which names the wrong key."""
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
    for name, item in sorted(fields.items()):
        if name not in table and item.default is item.default_factory:  # both are MISSING
            raise ConfigError(f"missing key {where}{name}")
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
        return tuple(_value(arguments[i], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is UnionType:  # optional keys are X | None, and TOML has no null
        return _value(arguments[0], value, where)
    if hint is float and (type(value) is int or (isinstance(value, str) and _EXPONENT.fullmatch(value))):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
