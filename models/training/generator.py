"""Trains a class-conditional MaskGIT generator on the tokens of a trained tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from models.atomic_files import write_whole
from models.checkpoints.loading import load_strictly, open_checkpoint
from models.data.datasets import ImageDataset
from models.networks.generator import MaskGITViT, UViT, build_generator
from models.networks.titok import TiTok
from models.training.checkpoints import checkpoint_config, save_checkpoint
from models.training.config import ConfigError, GeneratorRun
from models.training.distributed import own_rows
from models.training.initialisation import initialise, initialise_as_published
from models.training.loop import Step, autocast, compute_dtype
from models.training.losses import masked_token_loss, random_masks
from models.training.pretrained import FrozenTokenizer
from models.training.seeding import batch_rows, seeded_generator

__all__ = ["GeneratorTask", "TokenSet", "generator_classes", "tokenize"]

log = logging.getLogger(__name__)

EMBEDDING_STD = 0.3
LOGIT_STD = 0.02
VALIDATION_MASKS = -2


@dataclass(frozen=True)
class TokenSet:
    """Photographs as tokens: ``ids`` int64 [N, 2, K], upright and mirrored, ``labels`` int64 [N], the generator's."""

    ids: Tensor
    labels: Tensor


def generator_classes(run: GeneratorRun, names: tuple[str, ...]) -> dict[str, str]:
    """Names in the data to names of the generator's classes, in their order: the run's own, or the data's as they are.

    Raises :class:`ConfigError` for a class that the data does not have.
    """
    classes = run.training.classes or {name: name for name in names}
    if unknown := sorted(set(classes) - set(names)):
        raise ConfigError(f"training.classes names {unknown[0]}, which is not among the classes of the data")
    return classes


@torch.inference_mode()
def tokenize(
    photographs: ImageDataset,
    classes: dict[str, str],
    tokenizer: FrozenTokenizer,
    *,
    cache: Path,
    progress: Callable[[int, int], object] | None = None,
) -> TokenSet:
    """Tokens of the photographs of ``classes`` (see :func:`generator_classes`), whose order numbers the labels.

    ``progress`` hears how many of how many photographs are done.
    """
    numbers = {photographs.names.index(name): label for label, name in enumerate(classes)}
    rows = np.flatnonzero(np.isin(photographs.labels, list(numbers)))
    labels = torch.tensor([numbers[number] for number in photographs.labels[rows].tolist()], dtype=torch.int64)
    digest = hashlib.sha256(photographs.labels.tobytes())
    if len(rows):
        digest.update(photographs.batch(rows[:: -(-len(rows) // 16)]).cpu().numpy().tobytes())
    described = json.dumps([tokenizer.digest, len(photographs), list(classes), digest.hexdigest()])
    file = cache / f"tokens-{hashlib.sha256(described.encode()).hexdigest()[:12]}.npy"
    if not file.exists():
        log.info("tokenizing %d photographs, upright and mirrored", len(rows))
        parts = []
        for part in np.array_split(rows, max(1, -(-len(rows) // 64))):
            parts.append(_both_ways(photographs, part, tokenizer.network))
            if progress is not None:
                progress(sum(map(len, parts)), len(rows))
        write_whole(file, lambda sink: np.save(sink, np.concatenate(parts)))
    return TokenSet(torch.from_numpy(np.load(file).astype(np.int64)), labels)


def _both_ways(photographs: ImageDataset, rows: NDArray[np.int64], network: TiTok) -> NDArray[np.int32]:
    images = photographs.batch(rows).to(network.latent_tokens.device)
    views = torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)
    ids: NDArray[np.int32] = network.encode(views).ids.view(len(rows), 2, -1).to("cpu", torch.int32).numpy()
    return ids


class GeneratorTask:
    """A MaskGIT ViT or a U-ViT, and the tokens it learns to fill in; ``classes`` are those of the tokens.

    Source: arXiv 2406.07550, section 4, after MaskGIT (arXiv 2202.04200): arccos masking, classes dropped at random,
    smoothed labels.
    """

    def __init__(
        self,
        run: GeneratorRun,
        classes: dict[str, str],
        train: TokenSet,
        validation: TokenSet,
        tokenizer: FrozenTokenizer,
        device: torch.device | str = "cpu",
    ) -> None:
        _check(run, classes, tokenizer)
        self.run = run
        self.classes = classes
        self.device = torch.device(device)
        self.train = TokenSet(train.ids.to(self.device), train.labels.to(self.device))
        self.validation = TokenSet(validation.ids.to(self.device), validation.labels.to(self.device))
        self.tokenizer = tokenizer.config
        self._dtype = compute_dtype(run.optimizer.precision, self.device)
        torch.manual_seed(run.schedule.seed)
        self.network = build_generator(run.network)
        if run.training.initial is not None:
            load_strictly(self.network, open_checkpoint(run.training.initial))
        elif isinstance(self.network, UViT) and run.optimizer.muon_lr is not None:
            self._initialise(self.network, tokenizer.network.quantize.codebook.cpu())
        else:
            initialise_as_published(self.network)
        self.network.to(self.device)

    @torch.no_grad()
    def _initialise(self, network: UViT, codebook: Tensor) -> None:
        """Codes that are close to each other begin with embeddings, and with logits, that are: a random projection.

        On a small set no code is seen often enough to learn that from the tokens alone.
        """
        initialise(network, last=network.lm_head, last_std=LOGIT_STD)
        nn.init.normal_(network.embeddings.weight, std=EMBEDDING_STD)
        nn.init.normal_(network.pos_embed, std=EMBEDDING_STD)
        for rows, std in ((network.embeddings.weight, EMBEDDING_STD), (network.lm_head.weight, LOGIT_STD)):
            projected = codebook @ torch.randn(codebook.shape[1], rows.shape[1])
            rows[: len(codebook)] = std * projected / projected.std()

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The masked-token loss of this process's share of a batch."""
        self.network.train()
        size, seed = self.run.schedule.batch_size, self.run.schedule.seed
        rows = torch.from_numpy(batch_rows(len(self.train.labels), size, step.number, seed))
        mirrored = torch.randint(2, rows.shape, generator=step.generator)
        dropped = torch.rand(rows.shape, generator=step.generator) < self.run.training.class_dropout
        masked = random_masks(len(rows), self.run.network.image_seq_len, step.generator)
        rows, mirrored, dropped, masked = (
            t[own_rows(len(t))].to(self.device) for t in (rows, mirrored, dropped, masked)
        )
        labels = torch.where(dropped, -1, self.train.labels[rows])
        return {"loss": self._loss(self.network, self.train.ids[rows, mirrored], labels, masked)}

    def _loss(self, network: MaskGITViT | UViT, ids: Tensor, labels: Tensor, masked: Tensor) -> Tensor:
        with autocast(self.device, self._dtype):
            logits = network(torch.where(masked, self.run.network.mask_token, ids), labels)
        settings = self.run.training
        return masked_token_loss(
            logits, ids, masked, label_smoothing=settings.label_smoothing, visible_weight=settings.visible_weight
        )

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> dict[str, Tensor]:  # noqa: ARG002
        """Nothing to do."""
        return {}

    @torch.no_grad()
    def evaluate(self, network: MaskGITViT | UViT) -> dict[str, float]:
        """The loss on the validation photographs, and on as many of the training set: their distance is overfitting."""
        count = min(len(self.validation.labels), len(self.train.labels)) // 256 * 256 or len(self.validation.labels)
        means = {}
        for name, tokens in (("validation_loss", self.validation), ("training_loss", self.train)):
            masks = seeded_generator(self.run.schedule.seed, VALIDATION_MASKS)
            losses = []
            for start in range(0, count, 256):
                ids, labels = tokens.ids[start : start + 256, 0], tokens.labels[start : start + 256]
                losses.append(
                    self._loss(network, ids, labels, random_masks(len(ids), ids.shape[1], masks).to(self.device))
                )
            means[name] = float(torch.stack(losses).mean())
        return means

    def pictures(self, network: MaskGITViT | UViT) -> Tensor | None:  # noqa: ARG002
        """None: sampling belongs to ``titok generate`` and ``titok evaluate``."""
        return None

    def export(self, network: MaskGITViT | UViT, folder: Path) -> None:
        """Writes the checkpoint that the service loads."""
        shape = self.run.network
        config = checkpoint_config(self.tokenizer)
        config["model"]["generator"] = {
            "model_type": shape.model_type,
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "intermediate_size": shape.intermediate_size,
            "image_seq_len": shape.image_seq_len,
            "condition_num_classes": shape.condition_num_classes,
            "classes": list(self.classes.values()),
            "sources": list(self.classes),
        }
        save_checkpoint(folder, config, network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""


def _check(run: GeneratorRun, classes: dict[str, str], tokenizer: FrozenTokenizer) -> None:
    network = run.network
    if len(classes) != network.condition_num_classes:
        raise ConfigError(
            f"there are {len(classes)} classes, and network.condition_num_classes is {network.condition_num_classes}"
        )
    if (network.image_seq_len, network.codebook_size) != (
        tokenizer.config.num_latent_tokens,
        tokenizer.config.codebook_size,
    ):
        raise ConfigError("network.image_seq_len and network.codebook_size must be the tokenizer's")
