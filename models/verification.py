"""Verification that weights are the published ones, by published token ids of known images or by checksum.

::

    proven                        all published ids are reproduced, or the file has the given checksum
    proven up to rounding         the ids that differ are ties: both codes are equally near up to rounding
    loads; not proven             the shapes are right, and there is nothing to compare with
    NOT the published checkpoint  another checksum, shape or id; values that are not finite; a truncated file
"""

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

from models.checkpoints.loading import Checkpoint, HubFile, is_finite, open_checkpoint
from models.checkpoints.registry import TOKENIZERS
from models.errors import CheckpointError, ConfigError, UnknownVariantError, UnreadableCheckpoint
from models.preprocess import to_rgb
from models.tokenizer import Tokenizer, build_tokenizer

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

TIE = 1e-2
"""Squared distance on the unit sphere. TF32 convolutions round inputs to 10 bits; other weights differ by far more."""

MAX_TIES = 1 / 16
"""Fraction of the compared ids. More ties are not explained by rounding."""


@dataclass(frozen=True, kw_only=True)
class KnownTokens:
    """Published ``ids`` of an ``image`` file of S x S pixels, whose SHA-256 begins with ``sha256``."""

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
    """Result of a verification; see the module's docstring."""

    PROVEN = "proven"
    UP_TO_ROUNDING = "proven up to rounding"
    NOT_PROVEN = "loads; not proven"
    REFUTED = "NOT the published checkpoint"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An id that differs from the published one, whose code is farther away by ``margin`` in squared distance."""

    position: int
    published: int
    found: int
    margin: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison for one image. ``problem`` says why nothing was compared; ``equal`` is 0 then."""

    image: str
    tokens: int
    equal: int = 0
    differences: tuple[Difference, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Verdict and findings. ``sha256`` is that of the file; ``digest`` covers names, shapes, dtypes and values.

    ``round_trip``: how many of K ids are unchanged after decoding and encoding; None for a VAE.
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
    """Loads a tokenizer strictly and compares it with the published one.

    ``weights`` as for ``load_tokenizer``; ``images`` is a folder with the images of ``known``; ``sha256`` is the expected
    checksum of the file, 64 hexadecimal digits.

    Raises ``UnknownVariantError``, ``ValueError`` for a malformed checksum, and ``CheckpointError`` for missing weights.
    Weights that cannot be read or do not fit are a verdict, not an error.
    """
    variant = TOKENIZERS.get(name)
    if weights is None and variant is not None:
        weights = variant.weights
    if weights is None or (variant is None and name not in known):
        raise UnknownVariantError(f"no tokenizer is called {name!r}; choose one of {', '.join(TOKENIZERS)}")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"a SHA-256 has 64 hexadecimal digits, unlike {sha256!r}")
    try:
        checkpoint = open_checkpoint(weights)
    except UnreadableCheckpoint as error:
        found = _with_file(Verification(name=name, source=str(error.file)), error.file)
        return replace(found, reasons=(str(error), *_checksum_complaints(found, sha256)))
    if variant is not None and variant.config is not None:
        checkpoint = replace(checkpoint, config=None)  # the published shape, whatever config.json is beside it
    found = replace(_describe(name, checkpoint), finite=all(map(is_finite, checkpoint.tensors.values())))
    complaints = _checksum_complaints(found, sha256)
    try:
        tokenizer = build_tokenizer(name, checkpoint)
    except (CheckpointError, ConfigError) as error:
        return replace(found, reasons=(*complaints, str(error)))
    round_trip, complaint = _round_trip(tokenizer)
    complaints += [complaint] if complaint else []
    compared = tuple(_compare(tokenizer, one, images) for one in known.get(name, ())) if images else ()
    found = replace(found, round_trip=round_trip, comparisons=compared)
    return _judge(found, complaints, sha256=sha256, known=known.get(name, ()))


# --- the file and its weights ----------------------------------------------------------------------------------------


def _with_file(found: Verification, file: Path) -> Verification:
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
    return found if checkpoint.file is None else _with_file(found, checkpoint.file)


def _checksum_complaints(found: Verification, sha256: str | None) -> list[str]:
    if sha256 is None or sha256.lower() == found.sha256:
        return []
    return [f"the file's SHA-256 is {found.sha256}, not {sha256.lower()}"]


# --- encoding and decoding -------------------------------------------------------------------------------------------


def _round_trip(tokenizer: Tokenizer) -> tuple[int | None, str | None]:
    """Decodes ids spread over the codebook and encodes the image: the number of unchanged ids, and what is wrong."""
    shape = (1, tokenizer.num_tokens)
    if tokenizer.is_discrete:
        tokens = torch.linspace(0, tokenizer.codebook_size - 1, tokenizer.num_tokens).long()[None]
    else:
        tokens = torch.linspace(-1, 1, tokenizer.num_tokens)[None, :, None].expand(*shape, tokenizer.token_size)
    image = tokenizer.decode(tokens)
    if image.min() == image.max():
        return None, "decoding gives a single colour"
    if not bool(tokenizer.latents(image).isfinite().all()):
        return None, "encoding gives values that are not finite"
    return int((tokenizer.encode(image) == tokens).sum()) if tokenizer.is_discrete else None, None


def _compare(tokenizer: Tokenizer, known: KnownTokens, folder: Path) -> Comparison:
    comparison = Comparison(image=known.image, tokens=len(known.ids))
    try:
        content = (folder / known.image).read_bytes()
    except OSError as error:
        return replace(comparison, problem=f"cannot be read: {error.strerror}")
    if not (digest := hashlib.sha256(content).hexdigest()).startswith(known.sha256):
        return replace(
            comparison, problem=f"is another file: its SHA-256 begins with {digest[:16]}, not {known.sha256}"
        )
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
    return replace(comparison, equal=len(ids) - len(differences), differences=differences)


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
            f"{len(far)} of {total} ids differ; first: position {first.position} of {image} is {first.found}, "
            f"published {first.published}, which is {first.margin:.3g} farther"
        )
    elif len(differences) > MAX_TIES * total:
        complaints.append(f"{len(differences)} of {total} ids differ, all by ties: too many for rounding")
    if complaints:
        return replace(found, verdict=Verdict.REFUTED, reasons=tuple(complaints))
    if known and len(compared) == len(known):
        verdict = Verdict.UP_TO_ROUNDING if differences else Verdict.PROVEN
        return replace(
            found, verdict=verdict, reasons=(f"{total - len(differences)} of {total} ids equal the published ones",)
        )
    if sha256 is not None:
        return replace(found, verdict=Verdict.PROVEN, reasons=("the file has the given SHA-256",))
    missing = [f"{one.image} {one.problem}" for one in found.comparisons if one.problem is not None]
    names = " and ".join(one.image for one in known)
    wanted = f"pass --images, a folder with {names}" if known else "no published ids for this variant: pass --sha256"
    return replace(found, verdict=Verdict.NOT_PROVEN, reasons=tuple(missing or [wanted]))
