"""The manifest of an output folder: ``manifest.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.bulk.destination import RunSettings
from service.bulk.errors import BulkError
from service.bulk.job import Job

if TYPE_CHECKING:
    from models.tokenizer import Tokenizer

VERSION = 1
LARGEST_CODEBOOK = 1 << 16


def settings_of(job: Job, tokenizer: Tokenizer) -> RunSettings:
    """Everything that determines the bytes of the output. Raises ``BulkError`` if the token ids do not fit uint16."""
    if not tokenizer.is_discrete:
        raise BulkError(f"{tokenizer.name} is a VAE: its tokens are vectors, not ids")
    if tokenizer.codebook_size > LARGEST_CODEBOOK:
        raise BulkError(f"{tokenizer.name} has {tokenizer.codebook_size} codes; uint16 holds {LARGEST_CODEBOOK}")
    source, encoder = job.source, tokenizer.precision.encoder
    return {
        "version": VERSION,
        "source": {
            "name": source.name,
            "kind": source.kind,
            "parts": len(source.parts),
            "digest": source.digest,
            "classes": source.classes,
        },
        "tokenizer": {
            "name": tokenizer.name,
            "weights": tokenizer.digest,
            "revision": job.preprocessing.revision_of(tokenizer.revision),
            "image_size": tokenizer.image_size,
            "num_tokens": tokenizer.num_tokens,
            "codebook_size": tokenizer.codebook_size,
        },
        "preprocessing": {
            "version": job.preprocessing.version,
            "crops": job.crops.mode,
            "flip": job.crops.flip,
            "views": job.crops.count,
            "max_pixels": job.max_pixels,
        },
        "computed_in": {
            "dtype": encoder.name,
            # Below float32 the other images of a batch may change a token.
            "batch_size": None if encoder.is_batch_invariant else job.batch_images * job.crops.count,
        },
        "output": {"format": job.format, "dtype": "uint16", "shard_images": job.shard_images},
    }


def manifest_of(settings: RunSettings, records: list[dict[str, Any]], errors: dict[str, Any]) -> dict[str, Any]:
    """The settings, counts, and the digests of all files."""
    images = sum(record["images"] for record in records)
    broken = sum(len(record["broken"]) for record in records)
    views, tokens = settings["preprocessing"]["views"], settings["tokenizer"]["num_tokens"]
    return {
        **settings,
        "counts": {
            "entries": images + broken,
            "images": images,
            "broken": broken,
            "rows": images * views,
            "tokens": images * views * tokens,
        },
        "shards": [
            {"images": record["images"], "broken": len(record["broken"]), "files": record["files"]}
            for record in records
        ],
        "errors": errors,
    }
