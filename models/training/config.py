"""What one training run does: frozen dataclasses, read from a TOML file that may hold nothing they don't know."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from models.generator import GeneratorConfig
from models.titok import TiTokConfig

__all__ = [
    "ConfigError",
    "GeneratorRun",
    "GeneratorTraining",
    "OptimizerConfig",
    "ScheduleConfig",
    "TokenizerRun",
    "TokenizerTraining",
    "read_config",
]

T = TypeVar("T")


class ConfigError(ValueError):
    """A key that does not exist, is missing, or has a value of the wrong kind; the message names it."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate goes: warm-up, then a cosine to ``final_lr`` times its height.

    ``steps`` is the whole run; ``--max-minutes`` can only shorten it.
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
    """Learning rates of ``models.training.optimizers``; matrix products run in ``precision``, weights are float32."""

    muon_lr: float
    adamw_lr: float
    adamw_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    """Loss weights and the life of the codebook.

    The quantizer is left out for the first ``quantizer_start`` steps; then codes are seeded from latents. A code that
    was not used for ``dead_after`` steps is seeded anew, until ``revive_until`` of the run. ``max_shift`` is in pixels.
    """

    l1_weight: float = 0.1
    quantizer_start: int = 150
    dead_after: int = 40
    revive_until: float = 0.85
    max_shift: int = 4
    validation_images: int = 512


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    """Classes, masking and loss. ``tokenizer`` is a checkpoint folder, relative to the working directory."""

    tokenizer: str
    classes: dict[str, str]
    class_dropout: float = 0.1
    label_smoothing: float = 0.1
    visible_weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TokenizerRun:
    """Everything ``python -m models.training tokenizer`` reads from its file."""

    network: TiTokConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    training: TokenizerTraining = field(default_factory=TokenizerTraining)


@dataclass(frozen=True, kw_only=True)
class GeneratorRun:
    """Everything ``python -m models.training generator`` reads from its file."""

    network: GeneratorConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    training: GeneratorTraining


def read_config(path: Path, kind: type[T]) -> T:
    """Reads ``path`` as a ``kind``, one of the two runs; :class:`ConfigError` names the key that is wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
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
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
