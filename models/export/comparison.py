"""Compares exported files, run by ONNX Runtime, with the float32 network in PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.arrays import Pixels
from models.generation import Generator
from models.sampling.steps import SamplingRow, StepNoise, StepParameters, pack_rows, unpack_rows
from models.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ComparedIds:
    """``equal`` of the ``compared`` ids are PyTorch's; ``close`` of the others have a margin within the tolerance."""

    compared: int
    equal: int
    close: int

    @property
    def is_same(self) -> bool:
        """Whether only rounding made ids differ."""
        return self.equal + self.close == self.compared


@dataclass(frozen=True, kw_only=True)
class ComparedPixels:
    """Differences from PyTorch's pixels, in levels of 0..255."""

    largest: int
    mean: float


class OnnxGraph:
    """An exported file in ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # no warnings about float16 constants, which it converts later
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
        """All outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, inputs), strict=True))


def compare_encoder(path: Path, tokenizer: Tokenizer, images: Pixels) -> tuple[ComparedIds | None, float]:
    """Compares ids (None for a VAE), and latents by their largest difference, of images uint8 [B, S, S, 3].

    ``tokenizer`` is the float32 one.
    """
    found = OnnxGraph(path)(images=images)
    deviation = float(np.abs(found["latents"] - tokenizer.latents(images).numpy()).max())
    if not tokenizer.is_discrete:
        return None, deviation
    ids = tokenizer.encode(images)
    other = torch.from_numpy(found["ids"]) != ids
    nearest = tokenizer.distances(images).topk(2, largest=False).values
    close = other & (nearest[..., 1] - nearest[..., 0] < tokenizer.tolerance)
    return ComparedIds(compared=ids.numel(), equal=int((~other).sum()), close=int(close.sum())), deviation


def compare_decoder(path: Path, tokenizer: Tokenizer, images: Pixels) -> ComparedPixels:
    """Compares pixels, from the tokens of images uint8 [B, S, S, 3], and from the first ``min_tokens`` of them.

    ``tokenizer`` is the float32 one.
    """
    graph, differences = OnnxGraph(path), []
    name, tokens = (
        ("ids", tokenizer.encode(images)) if tokenizer.is_discrete else ("latents", tokenizer.latents(images))
    )
    for length in {tokenizer.min_tokens, tokenizer.num_tokens}:
        found = graph(**{name: tokens[:, :length].numpy()})["images"]
        differences.append(np.abs(found.astype(np.int16) - tokenizer.decode(tokens[:, :length]).numpy()))
    return ComparedPixels(largest=int(np.max(differences)), mean=float(np.mean(differences)))


def compare_generator(path: Path, generator: Generator, *, seeds: Sequence[int]) -> ComparedIds:
    """Compares the tokens of all steps of an image for each seed. ``generator`` is the float32 one."""
    graph, settings = OnnxGraph(path), generator.settings()
    rows = [generator.row(seed % generator.num_classes, seed, settings) for seed in seeds]
    compared = equal = 0
    for _ in range(settings.steps):
        found = graph(**step_inputs(rows, generator.codebook_size))["tokens_after"]
        generator.step(rows)
        expected = torch.stack([row.tokens for row in rows]).numpy()
        compared, equal = compared + expected.size, equal + int((found == expected).sum())
    return ComparedIds(compared=compared, equal=equal, close=0)


def step_inputs(rows: Sequence[SamplingRow], codebook_size: int) -> dict[str, NDArray[np.generic]]:
    """The inputs of the exported sampling step for ``rows`` (see ``models.export.graphs.step_graph``)."""
    tokens, parameters = unpack_rows(pack_rows(rows))
    noise = StepNoise.of(parameters, tokens.shape[1], codebook_size)
    given: dict[str, Tensor] = {
        name: value for name, value in zip(StepParameters._fields, parameters, strict=True) if not name.endswith("_key")
    }
    given |= {"tokens": tokens, "token_noise": noise.token, "confidence_noise": noise.confidence}
    return {name: value.contiguous().numpy() for name, value in given.items()}
