"""Reconstruction metrics of the tokenizer and of other codecs of similar size.

All metrics are means over the same images at the tokenizer's size S; reconstructions are uint8, as in a file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models.arrays import Ids, Pixels
from models.evaluation.distributions import Gaussian, frechet_distance, kernel_distance
from models.evaluation.features import Features, as_tensor, batches, extract_features
from models.evaluation.lite0 import Lite0, perceptual_distance
from models.evaluation.measures import entropy_bits, patch_steps
from models.evaluation.neighbours import ReferenceSet
from models.evaluation.placeholders import Codec, Decoded
from models.evaluation.progress import Track, no_progress
from models.evaluation.similarity import psnr, ssim
from models.evaluation.spool import Spool
from models.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class CodeUsage:
    """The number of codes that occurred, and their entropy, at most log2 of ``codebook_size``."""

    used: int
    codebook_size: int
    entropy_bits: float


@dataclass(frozen=True, kw_only=True)
class CodecFigures:
    """Metrics of one codec. Lower distances are better, higher values of the others; ``seams`` is 1 without a grid.

    ``psnr`` is in dB; ``perceptual_distance``, ``frechet_distance`` and ``kernel_distance`` are on Lite0 features;
    ``class_agreement`` is the share of images whose nearest training images are of their class, with its ratio to that of
    the originals; ``seams`` is the mean difference of pixels across patch borders over that inside patches, relative to
    the originals. ``tokens`` is the tokenizer's number of tokens, None for another codec.
    """

    name: str
    tokens: int | None
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
    """The metrics of all codecs, the tokenizer's first, over ``images`` images.

    Class agreement is over the ``classified`` images of one of the ``classes`` classes; ``original_class_agreement`` is
    that of the originals. ``codes`` is None for a tokenizer without codes.
    """

    images: int
    classes: int
    classified: int
    original_class_agreement: float
    codecs: tuple[CodecFigures, ...]
    codes: CodeUsage | None
    examples: dict[str, Pixels] = field(repr=False)
    reconstructions: Pixels | None = field(repr=False, default=None)


class TokenizerCodec(Codec):
    """A tokenizer as a codec: bytes of packed ids, or of float32 latents of a VAE. Counts the codes that occur.

    The latents are the posterior's mean, or with ``sample_posterior`` a sample with the seed 0, 1, 2 ... Raises
    ``ValueError`` for that of a tokenizer that is no VAE.
    """

    def __init__(self, tokenizer: Tokenizer, *, sample_posterior: bool = False) -> None:
        if sample_posterior and tokenizer.is_discrete:
            raise ValueError(f"{tokenizer.name} has no posterior to sample: only VAE variants have one")
        self._seeds = itertools.count() if sample_posterior else None
        self.name = tokenizer.name
        self.counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
        self.tokenizer, self.tokens = tokenizer, tokenizer.num_tokens
        self._last: tuple[Pixels, Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """The encoded size of one image."""
        tokenizer = self.tokenizer
        if tokenizer.is_discrete:
            return tokenizer.code_format.num_bytes
        return 4 * tokenizer.num_tokens * tokenizer.token_size

    @property
    def usage(self) -> CodeUsage | None:
        """Code usage so far; None for a VAE."""
        if not self.tokenizer.is_discrete:
            return None
        return CodeUsage(
            used=int((self.counts > 0).sum()), codebook_size=len(self.counts), entropy_bits=entropy_bits(self.counts)
        )

    def __call__(self, images: Pixels) -> Decoded:
        """See ``Codec``."""
        if self.tokenizer.is_discrete:
            tokens = self.tokenizer.encode(images)
            self.counts += torch.bincount(tokens.flatten(), minlength=len(self.counts))
            self._last = images, tokens
        else:
            seeds = None if self._seeds is None else list(itertools.islice(self._seeds, len(images)))
            tokens = self.tokenizer.latents(images, seeds=seeds)
        return Decoded(self.tokenizer.decode(tokens).numpy(), np.full(len(images), self.num_bytes))

    def ids_of(self, images: Pixels) -> Tensor:
        """Ids int64 [B, K] of images; those of the last call are not encoded again."""
        if self._last is None or self._last[0] is not images:
            return self.tokenizer.encode(images)
        return self._last[1]


def evaluate_reconstruction(
    images: Pixels,
    labels: Ids,
    *,
    codecs: Sequence[Codec],
    network: Lite0,
    references: ReferenceSet,
    patch_size: int,
    examples: Sequence[int] = (),
    keep: Spool | None = None,
    track: Track = no_progress,
) -> Reconstruction:
    """Encodes and decodes images uint8 [N, S, S, 3] of classes ``labels`` int64 [N] with every codec.

    The first codec is the tokenizer's; one whose name occurred before is left out. Class agreement is over the images of
    classes that ``references`` has.
    ``examples`` are rows whose images are kept for a contact sheet; ``keep`` gets all reconstructions of the first codec.
    """
    codecs = list({codec.name: codec for codec in codecs}.values())
    originals = _CodecMetrics("original", patch_size)
    metrics = [_CodecMetrics(codec.name, patch_size, codec.tokens) for codec in codecs]
    wanted = np.array(examples, dtype=np.int64)
    for part in track(batches(len(images)), "reconstructing"):
        original = Decoded(np.array(images[part]), np.zeros(part.stop - part.start, np.int64))
        rows = wanted[(wanted >= part.start) & (wanted < part.stop)] - part.start
        reference = as_tensor(original.images).to(network.device)
        features = extract_features(network, reference)
        originals.add(original, reference, features, reference, features, rows)
        for codec, of_codec in zip(codecs, metrics, strict=True):
            decoded = codec(original.images)
            outputs = as_tensor(decoded.images).to(network.device)
            of_codec.add(decoded, outputs, extract_features(network, outputs), reference, features, rows)
            if keep is not None and codec is codecs[0]:
                keep.append(decoded.images)
    truth = torch.from_numpy(labels)
    known = torch.isin(truth, references.labels)
    agreement = originals.agreement(references, truth, known)
    tokenizer = codecs[0]
    return Reconstruction(
        images=len(images),
        classes=len(torch.unique(references.labels)),
        classified=int(known.sum()),
        original_class_agreement=agreement,
        codecs=tuple(each.figures(originals, each.agreement(references, truth, known), agreement) for each in metrics),
        codes=tokenizer.usage if isinstance(tokenizer, TokenizerCodec) else None,
        examples={each.name: np.concatenate(each.examples) for each in (originals, *metrics)},
        reconstructions=None if keep is None else keep.array(),
    )


def best_placeholder(figures: Reconstruction, tokenizer: CodecFigures | None = None) -> CodecFigures | None:
    """The perceptually closest of the other codecs that never need more bytes than the tokenizer, or than it at a length."""
    limit = (tokenizer or figures.codecs[0]).max_bytes
    fitting = [codec for codec in figures.codecs if codec.tokens is None and codec.max_bytes <= limit]
    return min(fitting, key=lambda codec: codec.perceptual_distance, default=None)


class _CodecMetrics:
    """Metrics of one codec's images, collected batch by batch."""

    def __init__(self, name: str, patch_size: int, tokens: int | None = None) -> None:
        self.name, self.tokens = name, tokens
        self.patch_size = patch_size
        self.rows: list[Tensor] = []  # [B, 5] each: PSNR, SSIM, perceptual distance, differences across, inside patches
        self.pooled: list[Tensor] = []
        self.num_bytes: list[Ids] = []
        self.examples: list[Pixels] = []

    def add(
        self, decoded: Decoded, pixels: Tensor, features: Features, reference: Tensor, expected: Features, examples: Ids
    ) -> None:
        """A batch: ``pixels`` [B, 3, S, S] with their features, the originals' pixels and features, rows to keep."""
        similarity = [
            psnr(pixels, reference),
            ssim(pixels, reference),
            perceptual_distance(features.blocks, expected.blocks),
        ]
        rows = torch.cat([torch.stack(similarity, dim=1), patch_steps(pixels, self.patch_size)], dim=1)
        self.rows.append(rows.cpu())
        self.pooled.append(features.pooled.half())
        self.num_bytes.append(decoded.num_bytes)
        self.examples.append(decoded.images[examples])

    @cached_property
    def features(self) -> Tensor:
        return torch.cat(self.pooled)

    @cached_property
    def distribution(self) -> Gaussian:
        return Gaussian.fit(self.features)

    def agreement(self, references: ReferenceSet, labels: Tensor, known: Tensor) -> float:
        if not known.any():
            return math.nan
        found = references.classify(self.features[known])
        return float((found == labels[known]).double().mean())

    def seams(self) -> float:
        across, inside = torch.cat(self.rows)[:, 3:].mean(0)
        return float(across / inside)

    def figures(self, originals: _CodecMetrics, agreement: float, original_agreement: float) -> CodecFigures:
        decibels, similarity, perceptual = torch.cat(self.rows)[:, :3].double().mean(0).tolist()
        num_bytes = np.concatenate(self.num_bytes)
        return CodecFigures(
            name=self.name,
            tokens=self.tokens,
            mean_bytes=float(num_bytes.mean()),
            max_bytes=int(num_bytes.max()),
            psnr=decibels,
            ssim=similarity,
            perceptual_distance=perceptual,
            frechet_distance=frechet_distance(self.distribution, originals.distribution),
            kernel_distance=kernel_distance(self.features, originals.features),
            class_agreement=agreement,
            class_agreement_ratio=agreement / original_agreement if original_agreement else math.nan,
            seams=self.seams() / originals.seams(),
        )
