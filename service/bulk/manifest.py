"""The manifest of an output folder: ``manifest.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.bulk.errors import BulkError

if TYPE_CHECKING:
    from models.tokenizer import Tokenizer
    from service.bulk.entries import Source
    from service.bulk.job import RunSettings

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


def tokenizer_settings(tokenizer: Tokenizer, revision: str) -> dict[str, Any]:
    """What the manifest says of a tokenizer. Raises ``BulkError`` if the token ids do not fit uint16."""
    if not tokenizer.is_discrete:
        raise BulkError(f"{tokenizer.name} is a VAE: its tokens are vectors, not ids")
    if tokenizer.codebook_size > LARGEST_CODEBOOK:
        raise BulkError(f"{tokenizer.name} has {tokenizer.codebook_size} codes; uint16 holds {LARGEST_CODEBOOK}")
    return {
        "name": tokenizer.name,
        "weights": tokenizer.digest,
        "revision": revision,
        "image_size": tokenizer.image_size,
        "num_tokens": tokenizer.num_tokens,
        "codebook_size": tokenizer.codebook_size,
    }


def manifest_of(
    settings: RunSettings, views: int, records: list[dict[str, Any]], errors: dict[str, Any]
) -> dict[str, Any]:
    """The settings, counts, and the digests of all files; ``views`` rows per image."""
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
        "errors": errors,
    }
