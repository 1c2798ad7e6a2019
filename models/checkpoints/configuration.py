"""Network configurations in a checkpoint's ``config.json``, read and written.

Published files contain the whole training configuration, sometimes with unresolved interpolations such as
``${model.vq_model.codebook_size}``. Defaults for keys that old files lack follow the published code (1d-tokenizer, commit
942a96f): ``quantize_mode`` vq, ``finetune_decoder`` and ``is_legacy`` true.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from models.errors import ConfigError
from models.networks.generator import GeneratorConfig
from models.networks.titok import SIZES, TiTokConfig

T = TypeVar("T")

_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_TOKENIZER_KEYS = {
    "image_size": "dataset.preprocessing.crop_size",
    "encoder": "model.vq_model.vit_enc_model_size",
    "decoder": "model.vq_model.vit_dec_model_size",
    "encoder_patch_size": "model.vq_model.vit_enc_patch_size",
    "decoder_patch_size": "model.vq_model.vit_dec_patch_size",
    **{
        name: f"model.vq_model.{name}"
        for name in (
            *("codebook_size", "token_size", "use_l2_norm", "num_latent_tokens", "min_latent_tokens"),
            *("quantize_mode", "is_legacy", "finetune_decoder", "commitment_cost"),
            *("pixel_head", "pixel_head_channels", "pixel_head_blocks", "pixel_head_noise"),
        )
    },
}
_GENERATOR_KEYS = {
    "codebook_size": "model.vq_model.codebook_size",
    **{
        name: f"model.generator.{name}"
        for name in (
            *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            *("image_seq_len", "condition_num_classes"),
        )
    },
}


def tokenizer_config(root: Mapping[str, Any]) -> TiTokConfig:
    """Network configuration from a tokenizer's ``config.json``. Raises ``ConfigError``."""
    return _parse(TiTokConfig, root, _TOKENIZER_KEYS)


def generator_config(root: Mapping[str, Any], *, model_type: Literal["ViT", "UViT"] | None = None) -> GeneratorConfig:
    """Network configuration from a generator's ``config.json``; ``model_type`` is the default. Raises ``ConfigError``."""
    return _parse(GeneratorConfig, root, _GENERATOR_KEYS, **({} if model_type is None else {"model_type": model_type}))


def config_document(tokenizer: TiTokConfig, generator: GeneratorConfig | None = None) -> dict[str, Any]:
    """The ``config.json`` of these networks, with the keys of the published ones."""
    values = {path: asdict(tokenizer)[name] for name, path in _TOKENIZER_KEYS.items()}
    if generator is not None:
        values |= {path: asdict(generator)[name] for name, path in _GENERATOR_KEYS.items()}
    document: dict[str, Any] = {}
    for path, value in values.items():
        *sections, key = path.split(".")
        section = document
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = value
    return document


def class_names(root: Mapping[str, Any] | None, key: Literal["classes", "sources"]) -> tuple[str, ...] | None:
    """A generator's ``classes``, or ``sources``, their names in the training data, by id; None without such names."""
    names = None if root is None else _lookup(root, f"model.generator.{key}")
    return tuple(map(str, names)) if isinstance(names, list) else None


def with_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with names of sizes such as ``base`` replaced by the sizes."""
    return {name: SIZES.get(value, value) if isinstance(value, str) else value for name, value in values.items()}


def _parse(kind: type[T], root: Mapping[str, Any], keys: Mapping[str, str], **defaults: Any) -> T:
    """A configuration of the values at ``keys``, by field; fields without a value have their defaults."""
    values = {name: value for name, path in keys.items() if (value := _lookup(root, path)) is not None}
    try:
        return TypeAdapter(kind).validate_python({**defaults, **with_sizes(values)})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([keys[str(name)] if name in keys else str(name) for name in first["loc"]])
        raise ConfigError(f"config key {path!r}: {first['msg']}, not {first['input']!r}") from None


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
