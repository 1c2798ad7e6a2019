"""What reconstructions keep of photographs, beside what other codecs keep in as few bytes.

Every figure is a mean over the same photographs, at the tokenizer's size S, and every reconstruction is first rounded to
256 levels, as a file of it would be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.evaluation.distributions import frechet_distance, kernel_distance
from models.evaluation.features import Features, as_tensor, batches, extract
from models.evaluation.lite0 import Lite0
from models.evaluation.measures import entropy_bits, patch_steps
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.perceptual import perceptual_distance
from models.evaluation.placeholders import Codec, Decoded
from models.evaluation.progress import Track, no_progress
from models.evaluation.similarity import psnr, ssim
from models.tokenizer import Tokenizer

__all__ = [
    "CodeUsage",
    "CodecFigures",
    "Reconstruction",
    "TokenizerCodec",
    "best_placeholder",
    "evaluate_reconstruction",
]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CodeUsage:
    """How many of the codes occurred, and how evenly: ``entropy_bits`` is at most log2 of ``codebook_size``."""

    used: int
    codebook_size: int
    entropy_bits: float


@dataclass(frozen=True, kw_only=True)
class CodecFigures:
    """What one codec keeps. Distances are better small, everything else large; ``seams`` is 1 without a grid.

    ``mean_bytes`` and ``max_bytes`` of an image; ``psnr`` in dB; ``perceptual_distance``, ``frechet_distance`` and
    ``kernel_distance`` on Lite0 features; ``class_agreement``, the share of images whose nearest training photographs
    are of their class, and its ratio to that of the originals; ``seams``, steps across patch borders over steps inside,
    divided by the same of the originals.
    """

    name: str
    mean_bytes: float
    max_bytes: int
    psnr: float
    ssim: float
    perceptual_distance: float
    frechet_distance: float
    kernel_distance: float
    class_agreement: float
    class_agreement_ratio: float
    seams: float


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The figures of all codecs, the tokenizer's first, over ``images`` photographs.

    Class agreement is over the ``classified`` of them that are of one of ``classes``; ``original_class_agreement`` is
    that of the photographs themselves. ``codes`` is None for a tokenizer without codes.
    """

    images: int
    classes: int
    classified: int
    original_class_agreement: float
    codecs: tuple[CodecFigures, ...]
    codes: CodeUsage | None
    examples: dict[str, Pixels] = field(repr=False)
    reconstructions: Pixels | None = field(repr=False, default=None)


class TokenizerCodec:
    """A tokenizer as a codec: bytes are its packed code, or float32 latents of a VAE. Counts the codes it uses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name = tokenizer.name
        self.counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
        self._tokenizer = tokenizer

    @property
    def num_bytes(self) -> int:
        """Of one image."""
        tokenizer = self._tokenizer
        if tokenizer.is_discrete:
            return tokenizer.code_format.num_bytes
        return 4 * tokenizer.num_tokens * tokenizer.token_size

    @property
    def usage(self) -> CodeUsage | None:
        """Of the codes, so far; None for a VAE."""
        if not self._tokenizer.is_discrete:
            return None
        return CodeUsage(
            used=int((self.counts > 0).sum()),
            codebook_size=len(self.counts),
            entropy_bits=entropy_bits(self.counts),
        )

    def __call__(self, images: Pixels) -> Decoded:
        """See ``Codec``."""
        if self._tokenizer.is_discrete:
            tokens = self._tokenizer.encode(images)
            self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))
        else:
            tokens = self._tokenizer.latents(images)
        return Decoded(self._tokenizer.decode(tokens).numpy(), np.full(len(images), self.num_bytes))


def evaluate_reconstruction(
    images: Pixels,
    labels: NDArray[np.int64],
    *,
    codecs: Sequence[Codec],
    network: Lite0,
    references: ReferenceSet,
    patch_size: int,
    examples: Sequence[int] = (),
    keep: bool = False,
    track: Track = no_progress,
) -> Reconstruction:
    """Sends photographs uint8 [N, S, S, 3] of classes ``labels`` int64 [N] through every codec.

    The first codec is the tokenizer's. Agreement counts photographs of the classes that ``references`` has. ``examples``
    are the rows whose images are kept for a contact sheet; ``keep`` keeps all reconstructions of the first codec.
    """
    originals = _Tally("original")
    tallies = [_Tally(codec.name) for codec in codecs]
    wanted = np.array(examples, dtype=np.int64)
    kept: list[Pixels] = []
    for part in track(batches(len(images)), "reconstructing"):
        original = Decoded(np.array(images[part]), np.zeros(part.stop - part.start, np.int64))
        rows = wanted[(wanted >= part.start) & (wanted < part.stop)] - part.start
        pixels = as_tensor(original.images)
        features = extract(network, pixels)
        originals.add(original, pixels, features, patch_size, rows, against=(pixels, features))
        for tally, codec in zip(tallies, codecs, strict=True):
            decoded = codec(original.images)
            outputs = as_tensor(decoded.images)
            tally.add(decoded, outputs, extract(network, outputs), patch_size, rows, against=(pixels, features))
            if keep and tally is tallies[0]:
                kept.append(decoded.images)
    truth = torch.from_numpy(labels)
    judged = torch.isin(truth, references.labels)
    agreements = [tally.agreement(references, truth, judged) for tally in (originals, *tallies)]
    figures = [
        tally.figures(originals, agreement=agreement, whole=agreements[0])
        for tally, agreement in zip(tallies, agreements[1:], strict=True)
    ]
    first = codecs[0]
    return Reconstruction(
        images=len(images),
        classes=len(torch.unique(references.labels)),
        classified=int(judged.sum()),
        original_class_agreement=agreements[0],
        codecs=tuple(figures),
        codes=first.usage if isinstance(first, TokenizerCodec) else None,
        examples={tally.name: np.concatenate(tally.examples) for tally in (originals, *tallies)},
        reconstructions=np.concatenate(kept) if keep else None,
    )


def best_placeholder(figures: Reconstruction) -> CodecFigures | None:
    """The perceptually closest of the other codecs that never take more bytes than the first one."""
    tokenizer, *others = figures.codecs
    fitting = [codec for codec in others if codec.max_bytes <= tokenizer.max_bytes]
    return min(fitting, key=lambda codec: codec.perceptual_distance, default=None)


class _Tally:
    """What is known of one codec's images so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Tensor] = []  # [B, 5] each: PSNR, SSIM, perceptual distance, steps across and inside patches
        self.pooled: list[Tensor] = []
        self.num_bytes: list[NDArray[np.int64]] = []
        self.examples: list[Pixels] = []

    def add(
        self,
        decoded: Decoded,
        pixels: Tensor,
        features: Features,
        patch_size: int,
        examples: NDArray[np.int64],
        *,
        against: tuple[Tensor, Features],
    ) -> None:
        reference, reference_features = against
        similarity = [
            psnr(pixels, reference),
            ssim(pixels, reference),
            perceptual_distance(features.blocks, reference_features.blocks),
        ]
        self.rows.append(torch.cat([torch.stack(similarity, dim=1), patch_steps(pixels, patch_size)], dim=1))
        self.pooled.append(features.pooled)
        self.num_bytes.append(decoded.num_bytes)
        self.examples.append(decoded.images[examples])

    def agreement(self, references: ReferenceSet, labels: Tensor, judged: Tensor) -> float:
        if not judged.any():
            return math.nan
        found = references.classify(torch.cat(self.pooled)[judged])
        return float((found == labels[judged]).double().mean())

    def steps(self) -> float:
        across, inside = torch.cat(self.rows)[:, 3:].mean(0)
        return float(across / inside)

    def figures(self, originals: _Tally, *, agreement: float, whole: float) -> CodecFigures:
        decibels, similarity, perceptual = torch.cat(self.rows)[:, :3].double().mean(0).tolist()
        pooled, original = torch.cat(self.pooled), torch.cat(originals.pooled)
        return CodecFigures(
            name=self.name,
            mean_bytes=float(np.concatenate(self.num_bytes).mean()),
            max_bytes=int(np.concatenate(self.num_bytes).max()),
            psnr=decibels,
            ssim=similarity,
            perceptual_distance=perceptual,
            frechet_distance=frechet_distance(pooled, original),
            kernel_distance=kernel_distance(pooled, original),
            class_agreement=agreement,
            class_agreement_ratio=agreement / whole if whole else math.nan,
            seams=self.steps() / originals.steps(),
        )
