"""Parser of a checkpoint's ``config.json`` into network configurations.

Published files contain the whole training configuration, sometimes with unresolved interpolations such as
``${model.vq_model.codebook_size}``. Defaults for keys that old files lack follow the published code (1d-tokenizer, commit
942a96f): ``quantize_mode`` vq, ``finetune_decoder`` and ``is_legacy`` true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from models.errors import ConfigError
from models.networks.generator import GeneratorConfig
from models.networks.titok import SIZES, TiTokConfig, TransformerSize

_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


def _lookup(root: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, interpolations resolved; None if absent."""
    value: Any = root
    for _ in range(8):  # longer chains of interpolations are circular
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        match = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            return value
        path, value = match[1], root
    raise ConfigError(f"config key {path!r} refers to itself")


def _number(root: Mapping[str, Any], path: str, default: int | None = None) -> int:
    value = _lookup(root, path)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"config key {path!r} is {value!r}, not a whole number") from None


def _size(root: Mapping[str, Any], path: str) -> TransformerSize:
    value = _lookup(root, path)
    if isinstance(value, str) and value in SIZES:
        return SIZES[value]
    if isinstance(value, Mapping) and set(value) == {field.name for field in fields(TransformerSize)}:
        return TransformerSize(**{name: int(number) for name, number in value.items()})
    raise ConfigError(
        f"config key {path!r} is {value!r}: expected one of {', '.join(SIZES)}, or width, layers and heads"
    )


def tokenizer_config(root: Mapping[str, Any]) -> TiTokConfig:
    """Network configuration from a tokenizer's ``config.json``. Raises ``ConfigError``."""
    model = "model.vq_model"

    def switch(name: str, default: Any) -> Any:
        value = _lookup(root, f"{model}.{name}")
        return default if value is None else value

    mode = switch("quantize_mode", "vq")
    if mode not in ("vq", "vae"):
        raise ConfigError(f"config key '{model}.quantize_mode' is {mode!r}: expected vq or vae")
    try:
        return TiTokConfig(
            image_size=_number(root, "dataset.preprocessing.crop_size", 256),
            encoder=_size(root, f"{model}.vit_enc_model_size"),
            decoder=_size(root, f"{model}.vit_dec_model_size"),
            encoder_patch_size=_number(root, f"{model}.vit_enc_patch_size", 16),
            decoder_patch_size=_number(root, f"{model}.vit_dec_patch_size", 16),
            num_latent_tokens=_number(root, f"{model}.num_latent_tokens"),
            quantize_mode=mode,
            codebook_size=_number(root, f"{model}.codebook_size", None if mode == "vq" else 4096),
            token_size=_number(root, f"{model}.token_size"),
            use_l2_norm=bool(switch("use_l2_norm", False)),
            commitment_cost=float(switch("commitment_cost", 0.25)),
            is_legacy=bool(switch("is_legacy", True)),
            finetune_decoder=bool(switch("finetune_decoder", True)),
            pixel_head=switch("pixel_head", "linear"),
            pixel_head_channels=_number(root, f"{model}.pixel_head_channels", 64),
            pixel_head_blocks=_number(root, f"{model}.pixel_head_blocks", 1),
            pixel_head_noise=_number(root, f"{model}.pixel_head_noise", 0),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def generator_config(root: Mapping[str, Any], *, model_type: Literal["ViT", "UViT"] | None = None) -> GeneratorConfig:
    """Network configuration from a generator's ``config.json``; ``model_type`` is the default. Raises ``ConfigError``."""
    model = "model.generator"
    kind = _lookup(root, f"{model}.model_type") or model_type
    if kind not in ("ViT", "UViT"):
        raise ConfigError(f"config key '{model}.model_type' is {kind!r}: expected ViT or UViT")
    try:
        return GeneratorConfig(
            model_type=kind,
            image_seq_len=_number(root, f"{model}.image_seq_len"),
            codebook_size=_number(root, "model.vq_model.codebook_size"),
            condition_num_classes=_number(root, f"{model}.condition_num_classes", 1000),
            hidden_size=_number(root, f"{model}.hidden_size", 768),
            num_hidden_layers=_number(root, f"{model}.num_hidden_layers", 24),
            num_attention_heads=_number(root, f"{model}.num_attention_heads", 16),
            intermediate_size=_number(root, f"{model}.intermediate_size", 3072),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def class_names(root: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names of a generator, by id; None if ``config.json`` has none."""
    return _names(root, "model.generator.classes")


def class_sources(root: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names of a generator's training data, by id; None if ``config.json`` has none."""
    return _names(root, "model.generator.sources")


def _names(root: Mapping[str, Any], path: str) -> tuple[str, ...] | None:
    names = _lookup(root, path)
    return tuple(map(str, names)) if isinstance(names, list) else None
