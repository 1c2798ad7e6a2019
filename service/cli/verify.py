"""``titok verify``: checks that weights are the published ones; the exit code is the verdict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import Json

if TYPE_CHECKING:
    from models.verification import Comparison, Verification


def verify(
    name: Annotated[str, typer.Argument(help="Variant name, such as titok-l-32.")],
    weights: Annotated[
        str | None, typer.Option(help="File, folder or Hugging Face repository; default: the variant's.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder with the images of published tokens.", file_okay=False)
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of the file, 64 hexadecimal digits.")] = None,
    as_json: Json = False,
) -> None:
    """Check that weights are the published ones.

    Exit code 0: proven; 1: they differ, or an error; 3: they load, but nothing proves it.

    Example:

        titok verify titok-l-32
    """
    from models.verification import Verdict, verify_tokenizer  # torch is slow to import

    found = verify_tokenizer(name, weights=weights, images=images, sha256=sha256)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        typer.echo("\n".join(_lines(found)))
    codes = {Verdict.PROVEN: 0, Verdict.UP_TO_ROUNDING: 0, Verdict.REFUTED: 1, Verdict.NOT_PROVEN: 3}
    raise typer.Exit(codes[found.verdict])


def _lines(found: Verification) -> list[str]:
    facts = [("weights", f"{found.source} for {found.name}")]
    if found.sha256 is not None:
        facts.append(("file", f"{found.file_bytes:,} bytes, SHA-256 {found.sha256}"))
    if found.digest is not None:
        finite = "all finite" if found.finite else "NOT all finite"
        facts.append(
            ("tensors", f"{found.tensors:,} with {found.parameters:,} values, {finite}, digest {found.digest}")
        )
    if found.round_trip is not None:
        facts.append(("round trip", f"{found.round_trip} ids come back from decoding and encoding"))
    facts += [(one.image, text) for one in found.comparisons for text in _comparison(one)]
    facts.append(("verdict", ": ".join([found.verdict, "; ".join(found.reasons)])))
    return [f"{label:<28} {text}" for label, text in facts]


def _comparison(one: Comparison) -> list[str]:
    if one.problem is not None:
        return [one.problem]
    return [
        f"{one.equal} of {one.tokens} ids as published",
        *(
            f"position {each.position}: {each.found}, published {each.published}, {each.margin:.2g} farther"
            for each in one.differences
        ),
    ]
