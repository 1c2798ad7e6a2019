"""Trains a class-conditional MaskGIT generator on the tokens of a trained tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from models.checkpoints import load_strictly, open_checkpoint
from models.configuration import tokenizer_config
from models.data.photographs import Photographs
from models.generator import UViT
from models.titok import TiTok, TiTokConfig
from models.training.config import ConfigError, GeneratorRun
from models.training.initialisation import initialise
from models.training.loop import Step
from models.training.losses import masked_token_loss, random_masks
from models.training.order import rows_of_step, seeded
from models.training.state import save_checkpoint, write_whole
from models.training.tokenizer import checkpoint_config

__all__ = ["FrozenTokenizer", "GeneratorTask", "TokenSet", "load_frozen_tokenizer", "tokenize"]

log = logging.getLogger(__name__)

EMBEDDING_STD = 0.3
LOGIT_STD = 0.02
VALIDATION_MASKS = -2


@dataclass(frozen=True)
class TokenSet:
    """Photographs as tokens: ``ids`` int64 [N, 2, K], upright and mirrored, ``labels`` int64 [N], the generator's."""

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FrozenTokenizer:
    """A trained tokenizer, and the ``digest`` of its weights."""

    network: TiTok
    digest: str

    @property
    def config(self) -> TiTokConfig:
        """The shape of the network."""
        return self.network.config


def load_frozen_tokenizer(folder: Path) -> FrozenTokenizer:
    """The tokenizer in a checkpoint folder. Raises ``CheckpointError``."""
    checkpoint = open_checkpoint(folder)
    if checkpoint.config is None:
        raise ConfigError(f"no config.json in {folder}")
    with torch.device("meta"):
        network = TiTok(tokenizer_config(checkpoint.config))
    load_strictly(network, checkpoint)
    return FrozenTokenizer(network.eval().requires_grad_(False), checkpoint.digest())


@torch.inference_mode()
def tokenize(
    photographs: Photographs, names: list[str], classes: list[str], tokenizer: FrozenTokenizer, *, cache: Path
) -> TokenSet:
    """Tokens of the photographs whose class, by ``names``, is one of ``classes``, whose order numbers the labels."""
    if unknown := sorted(set(classes) - set(names)):
        raise ConfigError(f"training.classes names {unknown[0]}, which is not in classes.json")
    numbers = {names.index(name): label for label, name in enumerate(classes)}
    rows = np.flatnonzero(np.isin(photographs.labels, list(numbers)))
    labels = torch.tensor([numbers[number] for number in photographs.labels[rows].tolist()])
    described = json.dumps([tokenizer.digest, len(photographs), hashlib.sha256(rows.tobytes()).hexdigest()])
    file = cache / f"tokens-{hashlib.sha256(described.encode()).hexdigest()[:12]}.npy"
    if not file.exists():
        log.info("tokenizing %d photographs, upright and mirrored", len(rows))
        ids = np.concatenate([_both_ways(photographs, part, tokenizer.network) for part in _parts(rows)])
        write_whole(file, lambda sink: np.save(sink, ids))
    return TokenSet(torch.from_numpy(np.load(file).astype(np.int64)), labels)


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(rows, -(-len(rows) // 64))


def _both_ways(photographs: Photographs, rows: NDArray[np.int64], network: TiTok) -> NDArray[np.int32]:
    images = photographs.batch(rows)
    views = torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)
    ids: NDArray[np.int32] = network.encode(views).ids.view(len(rows), 2, -1).to(torch.int32).numpy()
    return ids


class GeneratorTask:
    """A U-ViT and the tokens it learns to fill in."""

    def __init__(self, run: GeneratorRun, train: TokenSet, validation: TokenSet, tokenizer: FrozenTokenizer) -> None:
        network = run.network
        if network.model_type != "UViT":
            raise ConfigError("network.model_type must be 'UViT' to be trained")
        if len(run.training.classes) != network.condition_num_classes:
            raise ConfigError(
                f"training.classes has {len(run.training.classes)} entries, network.condition_num_classes is "
                f"{network.condition_num_classes}"
            )
        if (network.image_seq_len, network.codebook_size) != (
            tokenizer.config.num_latent_tokens,
            tokenizer.config.codebook_size,
        ):
            raise ConfigError("network.image_seq_len and network.codebook_size must be the tokenizer's")
        self.run = run
        self.train = train
        self.validation = validation
        self.tokenizer = tokenizer.config
        torch.manual_seed(run.schedule.seed)
        self.network = UViT(network)
        initialise(self.network, last=self.network.lm_head, last_std=LOGIT_STD)
        nn.init.normal_(self.network.embeddings.weight, std=EMBEDDING_STD)
        nn.init.normal_(self.network.pos_embed, std=EMBEDDING_STD)
        self._start_from(tokenizer.network.quantize.codebook)

    @torch.no_grad()
    def _start_from(self, codebook: Tensor) -> None:
        """Codes that are close to each other begin with embeddings, and with logits, that are: a random projection.

        On a small set no code is seen often enough to learn that from the tokens alone.
        """
        for rows, std in ((self.network.embeddings.weight, EMBEDDING_STD), (self.network.lm_head.weight, LOGIT_STD)):
            projected = codebook @ torch.randn(codebook.shape[1], rows.shape[1])
            rows[: len(codebook)] = std * projected / projected.std()

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The masked-token loss of one batch."""
        self.network.train()
        size, seed = self.run.schedule.batch_size, self.run.schedule.seed
        rows = torch.from_numpy(rows_of_step(len(self.train.labels), size, step.number, seed))
        mirrored = torch.randint(2, rows.shape, generator=step.generator)
        dropped = torch.rand(rows.shape, generator=step.generator) < self.run.training.class_dropout
        labels = torch.where(dropped, -1, self.train.labels[rows])
        return {"loss": self._loss(self.network, self.train.ids[rows, mirrored], labels, step.generator)}

    def _loss(self, network: UViT, ids: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        masked = random_masks(len(ids), ids.shape[1], generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.run.optimizer.precision == "bfloat16"):
            logits = network(torch.where(masked, self.run.network.mask_token, ids), labels)
        settings = self.run.training
        return masked_token_loss(
            logits, ids, masked, label_smoothing=settings.label_smoothing, visible_weight=settings.visible_weight
        )

    def after_step(self, step: Step, optimizers: list[Optimizer]) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def evaluate(self, network: UViT) -> dict[str, float]:
        """The loss on the validation photographs, and on as many of the training set: their distance is overfitting."""
        count = min(len(self.validation.labels), len(self.train.labels)) // 256 * 256 or len(self.validation.labels)
        means = {}
        for name, tokens in (("validation_loss", self.validation), ("training_loss", self.train)):
            masks = seeded(self.run.schedule.seed, VALIDATION_MASKS)
            parts = [slice(start, start + 256) for start in range(0, count, 256)]
            losses = [self._loss(network, tokens.ids[part, 0], tokens.labels[part], masks) for part in parts]
            means[name] = float(torch.stack(losses).mean())
        return means

    def export(self, network: UViT, folder: Path) -> None:
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
            "classes": list(self.run.training.classes.values()),
        }
        save_checkpoint(folder, config, network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Nothing beyond the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
