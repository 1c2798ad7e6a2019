"""Proves that weights are the published ones: by the tokens that were published for known images, or by a checksum.

::

    proven                        every published id comes out, or the file has the checksum that was asked for
    proven up to rounding         the ids that differ are ties: the published code is as near as ours but for rounding
    loads; not proven             the right shape, and nothing to compare with
    NOT the published checkpoint  another checksum, shape or token; values that are not numbers; half a file
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.checkpoints.loading import Checkpoint, HubFile, open_checkpoint
from models.checkpoints.registry import TOKENIZERS
from models.errors import CheckpointError, ConfigError, UnknownVariantError, UnreadableCheckpoint
from models.preprocess import to_rgb
from models.tokenizer import Tokenizer, build_tokenizer

__all__ = ["KNOWN_TOKENS", "Comparison", "Difference", "KnownTokens", "Verdict", "Verification", "verify_tokenizer"]

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

TIE = 1e-2
"""Squared distance on the unit sphere. A GPU's convolutions round inputs to 10 bits; other weights differ by far more."""

MAX_TIES = 1 / 16
"""Of the ids that are compared. More of them are no accident."""


@dataclass(frozen=True, kw_only=True)
class KnownTokens:
    """The ``ids`` published for an ``image`` of S x S pixels, a file whose SHA-256 begins with ``sha256``."""

    image: str
    sha256: str
    ids: tuple[int, ...]


KNOWN_TOKENS: dict[str, tuple[KnownTokens, ...]] = {
    "titok-l-32": (
        KnownTokens(
            image="ILSVRC2012_val_00010240.png",
            sha256="75105b81fc706e97",
            ids=(
                *(887, 3979, 349, 720, 2809, 2743, 2101, 603, 2205, 1508, 1891, 4015, 1317, 2956, 3774, 2296),
                *(484, 2612, 3472, 2330, 3140, 3113, 1056, 3779, 654, 2360, 1901, 2908, 2169, 953, 1326, 2598),
            ),
        ),
        KnownTokens(
            image="ILSVRC2012_val_00008636.png",
            sha256="dc9e100041f48fdd",
            ids=(
                *(1255, 2603, 982, 2222, 643, 1426, 866, 4094, 296, 1422, 398, 764, 3670, 1265, 3986, 759),
                *(1039, 3962, 2373, 2337, 1372, 4050, 4012, 3644, 2624, 3735, 1539, 1289, 2817, 2985, 2550, 2972),
            ),
        ),
    )
}
"""By variant. Printed in 1d-tokenizer's README_TiTok.md and notebook (commit 942a96f), computed on a GPU."""


class Verdict(StrEnum):
    """See the module."""

    PROVEN = "proven"
    UP_TO_ROUNDING = "proven up to rounding"
    NOT_PROVEN = "loads; not proven"
    REFUTED = "NOT the published checkpoint"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An id that is not the published one; the published code is ``margin`` farther away, in squared distance."""

    position: int
    published: int
    found: int
    margin: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One image with known tokens. ``problem`` says why nothing was compared, in which case ``equal`` is 0."""

    image: str
    tokens: int
    equal: int = 0
    differences: tuple[Difference, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found. ``sha256`` is the file's; ``digest`` is that of names, shapes, dtypes and values.

    ``round_trip``: of K tokens that are decoded and encoded again, how many come back; None for a VAE.
    """

    name: str
    source: str
    verdict: Verdict = Verdict.REFUTED
    reasons: tuple[str, ...] = ()
    file_bytes: int | None = None
    sha256: str | None = None
    digest: str | None = None
    tensors: int = 0
    parameters: int = 0
    finite: bool = False
    round_trip: int | None = None
    comparisons: tuple[Comparison, ...] = ()


def verify_tokenizer(
    name: str,
    *,
    weights: str | Path | HubFile | None = None,
    images: Path | None = None,
    sha256: str | None = None,
    known: Mapping[str, tuple[KnownTokens, ...]] = KNOWN_TOKENS,
) -> Verification:
    """Loads a tokenizer strictly and compares it with what was published.

    ``weights`` as for ``load_tokenizer``; ``images`` is a folder with the images of ``known``; ``sha256`` is what the
    file's should be, 64 hexadecimal digits.

    Raises ``UnknownVariantError``, ``ValueError`` for another kind of checksum, and ``CheckpointError`` for weights that
    are not there. Weights that are there and of no use are a verdict.
    """
    variant = TOKENIZERS.get(name)
    if variant is None and (weights is None or name not in known):
        raise UnknownVariantError(f"no tokenizer is called {name!r}; there are {', '.join(TOKENIZERS)}")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"a SHA-256 is 64 hexadecimal digits, which {sha256!r} is not")
    if weights is None and variant is not None:
        weights = variant.weights
    assert weights is not None  # noqa: S101 - one of the two was there
    try:
        checkpoint = open_checkpoint(weights)
    except UnreadableCheckpoint as error:
        found = _file_facts(Verification(name=name, source=str(error.file)), error.file)
        return replace(found, reasons=(str(error), *_checksum_complaints(found, sha256)))
    if variant is not None and variant.config is not None:
        checkpoint = replace(checkpoint, config=None)  # the published shape, whatever config.json lies beside it
    not_finite = _not_finite(checkpoint)
    found = replace(_describe(name, checkpoint), finite=not not_finite)
    complaints = [*_checksum_complaints(found, sha256), *not_finite]
    try:
        tokenizer = build_tokenizer(name, checkpoint)
    except (CheckpointError, ConfigError) as error:
        return replace(found, reasons=(*complaints, str(error)))
    if found.finite:
        round_trip, complaint = _try_out(tokenizer)
        complaints += [complaint] if complaint else []
        compared = tuple(_compare(tokenizer, one, images) for one in known.get(name, ())) if images else ()
        found = replace(found, round_trip=round_trip, comparisons=compared)
    return _judge(found, complaints, sha256=sha256, known=known.get(name, ()))


# --- the file and its weights ----------------------------------------------------------------------------------------


def _file_facts(found: Verification, file: Path) -> Verification:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return replace(found, file_bytes=file.stat().st_size, sha256=digest)


def _describe(name: str, checkpoint: Checkpoint) -> Verification:
    found = Verification(
        name=name,
        source=checkpoint.source,
        digest=checkpoint.digest(),
        tensors=len(checkpoint.tensors),
        parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
    )
    return found if checkpoint.file is None else _file_facts(found, checkpoint.file)


def _checksum_complaints(found: Verification, sha256: str | None) -> list[str]:
    if sha256 is None or sha256.lower() == found.sha256:
        return []
    return [f"the file's SHA-256 is {found.sha256}, not {sha256.lower()}"]


def _not_finite(checkpoint: Checkpoint) -> list[str]:
    bad = [name for name, tensor in checkpoint.tensors.items() if not bool(tensor.isfinite().all())]
    if not bad:
        return []
    return [f"{len(bad)} of {len(checkpoint.tensors)} tensors hold values that are not finite; first: {bad[0]}"]


# --- what comes out --------------------------------------------------------------------------------------------------


def _try_out(tokenizer: Tokenizer) -> tuple[int | None, str | None]:
    """Decodes codes from all over the codebook, encodes the image; how many come back, and what is wrong."""
    shape = (1, tokenizer.num_tokens)
    if tokenizer.is_discrete:
        tokens = torch.linspace(0, tokenizer.codebook_size - 1, tokenizer.num_tokens).long()[None]
    else:
        tokens = torch.linspace(-1, 1, tokenizer.num_tokens)[None, :, None].expand(*shape, tokenizer.token_size)
    image = tokenizer.decode(tokens)
    if image.min() == image.max():
        return None, "it decodes to a single colour"
    if not bool(tokenizer.latents(image).isfinite().all()):
        return None, "it encodes to values that are not finite"
    return int((tokenizer.encode(image) == tokens).sum()) if tokenizer.is_discrete else None, None


def _compare(tokenizer: Tokenizer, known: KnownTokens, folder: Path) -> Comparison:
    nothing = Comparison(image=known.image, tokens=len(known.ids))
    try:
        content = (folder / known.image).read_bytes()
    except OSError as error:
        return replace(nothing, problem=f"cannot be read: {error.strerror}")
    if not (digest := hashlib.sha256(content).hexdigest()).startswith(known.sha256):
        return replace(nothing, problem=f"is another file: its SHA-256 begins {digest[:16]}, not {known.sha256}")
    with Image.open(BytesIO(content)) as image:
        pixels = np.asarray(to_rgb(image))[None]
    distances = tokenizer.distances(pixels)[0]  # [K, V]
    nearest = distances.amin(dim=1)
    ids = tokenizer.encode(pixels)[0].tolist()
    differences = tuple(
        Difference(
            position=position,
            published=published,
            found=own,
            margin=float(distances[position, published] - nearest[position]),
        )
        for position, (published, own) in enumerate(zip(known.ids, ids, strict=True))
        if published != own
    )
    return replace(nothing, equal=len(ids) - len(differences), differences=differences)


# --- the verdict -----------------------------------------------------------------------------------------------------


def _judge(
    found: Verification, complaints: list[str], *, sha256: str | None, known: tuple[KnownTokens, ...]
) -> Verification:
    compared = [one for one in found.comparisons if one.problem is None]
    differences = [(one.image, each) for one in compared for each in one.differences]
    total = sum(one.tokens for one in compared)
    far = [(image, each) for image, each in differences if each.margin > TIE]
    if far:
        image, first = far[0]
        complaints.append(
            f"{len(far)} of {total} ids are others; first: position {first.position} of {image} is {first.found}, "
            f"published {first.published}, which is {first.margin:.3g} farther"
        )
    elif len(differences) > MAX_TIES * total:
        complaints.append(f"{len(differences)} of {total} ids are others, if only just: too many for rounding")
    if complaints:
        return replace(found, verdict=Verdict.REFUTED, reasons=tuple(complaints))
    if known and len(compared) == len(known):
        verdict = Verdict.UP_TO_ROUNDING if differences else Verdict.PROVEN
        return replace(
            found, verdict=verdict, reasons=(f"{total - len(differences)} of {total} ids are the published ones",)
        )
    if sha256 is not None:
        return replace(found, verdict=Verdict.PROVEN, reasons=("the file has the SHA-256 that was given",))
    missing = [f"{one.image} {one.problem}" for one in found.comparisons if one.problem is not None]
    names = " and ".join(one.image for one in known)
    wanted = f"give --images, a folder with {names}" if known else "no tokens are known for it: give --sha256"
    return replace(found, verdict=Verdict.NOT_PROVEN, reasons=tuple(missing or [wanted]))
