"""The manifest of an output folder: ``manifest.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.codes.code_format import CodeError
from service.bulk.errors import BulkError

if TYPE_CHECKING:
    from models.tokenizer import Tokenizer
    from service.bulk.entries import Source

RunSettings = Mapping[str, Any]
"""Everything that determines the bytes of the output, as JSON."""

VERSION = 1
LARGEST_CODEBOOK = 1 << 16


def source_settings(source: Source[object]) -> dict[str, Any]:
    """What the manifest says of a source."""
    return {
        "name": source.name,
        "kind": source.kind,
        "parts": len(source.parts),
        "digest": source.digest,
        "classes": source.classes,
    }


def tokenizer_settings(tokenizer: Tokenizer, revision: str, length: int | None) -> dict[str, Any]:
    """What the manifest says of a tokenizer and of its codes, of which the first ``length`` tokens are kept (None: all).

    Raises ``BulkError`` if the token ids do not fit uint16 or the tokenizer does not decode this length.
    """
    if not tokenizer.is_discrete:
        raise BulkError(f"{tokenizer.name} is a VAE: its tokens are vectors, not ids; titok tokenize has --latents")
    if tokenizer.codebook_size > LARGEST_CODEBOOK:
        raise BulkError(f"{tokenizer.name} has {tokenizer.codebook_size} codes; uint16 holds {LARGEST_CODEBOOK}")
    try:
        code_format = tokenizer.code_format.of_length(tokenizer.num_tokens if length is None else length)
    except CodeError as error:
        raise BulkError(f"{tokenizer.name}: {error}") from None
    return {
        **_identity(tokenizer, revision),
        "num_tokens": code_format.num_tokens,
        "codebook_size": tokenizer.codebook_size,
    }


def latents_settings(tokenizer: Tokenizer, revision: str) -> dict[str, Any]:
    """What the manifest says of a tokenizer whose latents are written."""
    num_tokens, token_size = tokenizer.latent_format.shape
    return {**_identity(tokenizer, revision), "num_tokens": num_tokens, "token_size": token_size}


def _identity(tokenizer: Tokenizer, revision: str) -> dict[str, Any]:
    return {
        "name": tokenizer.name,
        "weights": tokenizer.digest,
        "revision": revision,
        "image_size": tokenizer.image_size,
    }


def manifest_of(
    settings: RunSettings,
    views: int,
    records: list[dict[str, Any]],
    errors: dict[str, Any],
    merged: list[dict[str, Any]],
) -> dict[str, Any]:
    """The settings, counts, and the digests of all files: those of shards, of errors and merged ones. An image has ``views``
    rows.
    """
    images = sum(record["images"] for record in records)
    broken = sum(len(record["broken"]) for record in records)
    return {
        **settings,
        "counts": {
            "entries": images + broken,
            "images": images,
            "broken": broken,
            "rows": images * views,
            "tokens": images * views * settings["tokenizer"]["num_tokens"],
        },
        "shards": [
            {"images": record["images"], "broken": len(record["broken"]), "files": record["files"]}
            for record in records
        ],
        **({"merged": merged} if merged else {}),
        "errors": errors,
    }
