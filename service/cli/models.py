"""``titok models`` and ``titok info``: what can be served, and a loaded tokenizer's properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from service.cli.options import CommandError, Json, Tokenizer, Weights, load_settings
from service.cli.terminal import output_console

if TYPE_CHECKING:
    from models.checkpoints.registry import TokenizerVariant


def models(as_json: Json = False) -> None:
    """List the model variants: their tokens, published rFID, and the repository of their weights.

    Example:

        titok models --json | jq '.[].name'
    """
    from models.checkpoints.registry import GENERATORS, TOKENIZERS  # torch is slow to import

    rows = [_row(variant, has_generator=name in GENERATORS) for name, variant in TOKENIZERS.items()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column in ("name", "weights") else "right")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    output_console().print(table)


def info(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Variant name; by default that of the settings.")
    ] = None,
    tokenizer: Tokenizer = None,
    weights: Weights = None,
) -> None:
    """Load a tokenizer and describe it as JSON.

    Example:

        titok info titok-mini-32
    """
    if name is not None and tokenizer is not None and name != tokenizer:
        raise CommandError(f"two tokenizers are named: {name} and {tokenizer}")
    from models import load_tokenizer  # torch is slow to import

    model = load_tokenizer(name or tokenizer or load_settings().tokenizer, weights=weights)
    description = {
        "name": model.name,
        "revision": model.revision,
        "source": model.source,
        "parameters": model.num_parameters,
        "image_size": model.image_size,
        "num_tokens": model.num_tokens,
        "min_tokens": model.min_tokens,
        "codebook_size": model.codebook_size,
    }
    typer.echo(json.dumps(description, indent=2))


def _row(variant: TokenizerVariant, *, has_generator: bool) -> dict[str, Any]:
    from models.checkpoints.configuration import tokenizer_config
    from models.networks.maskgit_vqgan import MaskGITVQGANConfig

    config = variant.config
    if config is None:
        config = tokenizer_config(json.loads(Path(str(variant.weights), "config.json").read_bytes()))
    if isinstance(config, MaskGITVQGANConfig):
        num_tokens, min_tokens, is_discrete = config.grid_size**2, None, True
    else:
        num_tokens, min_tokens = config.num_latent_tokens, config.min_latent_tokens
        is_discrete = config.quantize_mode == "vq"
    return {
        "name": variant.name,
        "image_size": config.image_size,
        "num_tokens": num_tokens,
        "min_tokens": min_tokens or num_tokens,
        "codebook_size": config.codebook_size if is_discrete else None,
        "rfid": variant.rfid,
        "generator": "yes" if has_generator else "no",
        "weights": str(variant.weights),
    }
