"""Training a class-conditional MaskGIT generator on the token ids of a trained tokenizer."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from models.arrays import Ids
from models.atomic_files import write_atomically
from models.checkpoints.configuration import config_document
from models.checkpoints.loading import load_strictly, open_checkpoint
from models.data.datasets import ImageDataset
from models.errors import ConfigError
from models.networks.generator import MaskGITViT, UViT, build_generator
from models.networks.titok import TiTok
from models.runtime.transfers import to_device
from models.training.checkpoints import save_checkpoint
from models.training.config import GeneratorRun
from models.training.distributed import all_parts, largest_of, own_rows, raise_together, rank, world_size
from models.training.initialisation import initialise, initialise_as_published
from models.training.losses import masked_token_loss, random_masks
from models.training.pretrained import FrozenTokenizer
from models.training.seeding import batch_rows, check_count, seeded_generator
from models.training.task import Step, Task

log = logging.getLogger(__name__)

EMBEDDING_STD = 0.3
LOGIT_STD = 0.02
VALIDATION_MASKS = -2
EVALUATION_BATCH = 256
_TOKENIZER_BATCH = 64  # of each process


@dataclass(frozen=True)
class TokenSet:
    """Token ids int32 or int64 [N, V, K] of V crops of each image, such as the image and its mirror image, and the
    generator's ``labels`` int64 [N].
    """

    ids: Tensor
    labels: Tensor


def generator_classes(run: GeneratorRun, names: tuple[str, ...]) -> dict[str, str]:
    """Maps class names of the data to the generator's, in the generator's order; without ``training.classes`` both agree.

    Raises :class:`ConfigError` for a class that the data does not have.
    """
    classes = run.training.classes or {name: name for name in names}
    if unknown := sorted(set(classes) - set(names)):
        raise ConfigError(f"training.classes names {unknown[0]}, which is not among the classes of the data")
    return classes


@torch.inference_mode()
def tokenize(
    images: ImageDataset,
    classes: dict[str, str],
    tokenizer: FrozenTokenizer,
    *,
    cache: Path,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> TokenSet:
    """Token ids of the images of ``classes`` (see :func:`generator_classes`), whose order numbers the labels.

    The ids are kept in ``cache``. Processes share the images and exchange their ids after every batch. ``progress`` is
    called with the numbers of done and of all images.
    """
    numbers = {images.names.index(name): label for label, name in enumerate(classes)}
    rows = np.flatnonzero(np.isin(images.labels, list(numbers)))
    labels = torch.tensor([numbers[number] for number in images.labels[rows].tolist()], dtype=torch.int64)
    file = cache / f"tokens-{_cache_key(images, classes, tokenizer)}.npy"
    (is_missing,) = largest_of(not file.exists())
    if is_missing:
        log.info("tokenizing %d images and their mirror images", len(rows))
        parts = [np.empty((0, 2, tokenizer.network.config.num_latent_tokens), np.int32)]
        for start in range(0, len(rows), _TOKENIZER_BATCH * world_size()):
            parts.append(_encode_together(images, rows[start : start + _TOKENIZER_BATCH * world_size()], tokenizer))
            progress(sum(map(len, parts)), len(rows))
        with FileLock(file.with_suffix(".lock")):  # the processes of a machine share a cache
            if not file.exists():
                write_atomically(file, lambda sink: np.save(sink, np.concatenate(parts)))
    return TokenSet(torch.from_numpy(np.load(file).astype(np.int64)), labels)


def _encode_together(images: ImageDataset, rows: Ids, tokenizer: FrozenTokenizer) -> NDArray[np.int32]:
    """Ids int32 [B, 2, K] of ``rows``, of which each process encodes a share."""
    share = np.array_split(rows, world_size())[rank()]
    failure, own = None, torch.empty(0)
    try:
        own = torch.from_numpy(_encode_with_mirrored(images, share, tokenizer.network))
    except Exception as error:
        failure = error
    raise_together(failure)
    return np.concatenate([ids.numpy() for ids in all_parts(own)])


def _cache_key(images: ImageDataset, classes: dict[str, str], tokenizer: FrozenTokenizer) -> str:
    """A digest of all that the ids depend on; the number of images tells whether unreadable ones were left out."""
    described = json.dumps([tokenizer.digest, images.fingerprint, len(images), list(classes)])
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _encode_with_mirrored(images: ImageDataset, rows: Ids, network: TiTok) -> NDArray[np.int32]:
    """Ids int32 [B, 2, K] of the images of ``rows`` and of their mirror images."""
    upright = images.batch(rows).to(network.latent_tokens.device)
    both = torch.stack([upright, upright.flip(3)], dim=1).flatten(0, 1)
    ids: NDArray[np.int32] = network.encode(both).ids.view(len(rows), 2, -1).to("cpu", torch.int32).numpy()
    return ids


class GeneratorTask(Task[MaskGITViT | UViT]):
    """A MaskGIT ViT or a U-ViT that learns to predict masked tokens; ``classes`` are those of the token sets.

    Source: arXiv 2406.07550, section 4, after MaskGIT (arXiv 2202.04200): arccos masking, class dropout, label smoothing.
    """

    run: GeneratorRun

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
        check_count(len(train.labels), run.schedule)
        torch.manual_seed(run.schedule.seed)
        network = build_generator(run.network)
        if run.training.initial is not None:
            load_strictly(network, open_checkpoint(run.training.initial))
        elif isinstance(network, UViT) and run.optimizer.muon_lr is not None:
            _initialise_from_codebook(network, tokenizer.network.quantize.codebook.cpu())
        else:
            initialise_as_published(network)
        super().__init__(run, network, device)
        self.classes = classes
        self.train, self.validation = (
            TokenSet(tokens.ids.to(self.device), tokens.labels.to(self.device)) for tokens in (train, validation)
        )
        self.tokenizer = tokenizer.network.config

    def losses(self, step: Step) -> dict[str, Tensor]:
        """The masked-token loss of this process's share of a batch."""
        self.network.train()
        schedule = self.run.schedule
        rows = torch.from_numpy(batch_rows(len(self.train.labels), schedule, step.number, step.part))
        views = torch.randint(self.train.ids.shape[1], rows.shape, generator=step.generator)
        dropped = torch.rand(rows.shape, generator=step.generator) < self.run.training.class_dropout
        masked = random_masks(len(rows), self.run.network.image_seq_len, step.generator)
        rows, views, dropped, masked = (
            to_device(t[own_rows(len(t))], self.device) for t in (rows, views, dropped, masked)
        )
        labels = torch.where(dropped, -1, self.train.labels[rows])
        return {"loss": self._loss(self.network, self.train.ids[rows, views].long(), labels, masked)}

    def _loss(self, network: MaskGITViT | UViT, ids: Tensor, labels: Tensor, masked: Tensor) -> Tensor:
        with self.autocast():
            logits = network(torch.where(masked, self.run.network.mask_token, ids), labels)
        settings = self.run.training
        return masked_token_loss(
            logits, ids, masked, label_smoothing=settings.label_smoothing, visible_weight=settings.visible_weight
        )

    @torch.no_grad()
    def evaluate(self, network: MaskGITViT | UViT) -> dict[str, float]:
        """The loss on the validation images, and on as many training images: their difference shows overfitting."""
        size = EVALUATION_BATCH
        count = min(len(self.validation.labels), len(self.train.labels)) // size * size or len(self.validation.labels)
        means = {}
        for name, tokens in (("validation_loss", self.validation), ("training_loss", self.train)):
            generator = seeded_generator(self.run.schedule.seed, VALIDATION_MASKS)
            losses = []
            for start in range(0, count, size):
                ids, labels = tokens.ids[start : start + size, 0].long(), tokens.labels[start : start + size]
                masked = random_masks(len(ids), ids.shape[1], generator).to(self.device)
                losses.append(self._loss(network, ids, labels, masked))
            means[name] = float(torch.stack(losses).mean())
        return means

    def export(self, network: MaskGITViT | UViT, folder: Path) -> None:
        """See :meth:`Task.export`."""
        config = config_document(self.tokenizer, self.run.network)
        config["model"]["generator"] |= {"classes": list(self.classes.values()), "sources": list(self.classes)}
        save_checkpoint(folder, config, network.state_dict())


@torch.no_grad()
def _initialise_from_codebook(network: UViT, codebook: Tensor) -> None:
    """Initialises embeddings and logit weights with random projections of the codebook, so that similar codes have
    similar ones: in a small data set codes are too rare to learn that from the tokens alone.
    """
    initialise(network, last=network.lm_head, last_std=LOGIT_STD)
    nn.init.normal_(network.embeddings.weight, std=EMBEDDING_STD)
    nn.init.normal_(network.pos_embed, std=EMBEDDING_STD)
    for rows, std in ((network.embeddings.weight, EMBEDDING_STD), (network.lm_head.weight, LOGIT_STD)):
        projected = codebook @ torch.randn(codebook.shape[1], rows.shape[1])
        rows[: len(codebook)] = std * projected / projected.std()


def _check(run: GeneratorRun, classes: dict[str, str], tokenizer: FrozenTokenizer) -> None:
    network = run.network
    if len(classes) != network.condition_num_classes:
        raise ConfigError(
            f"there are {len(classes)} classes, and network.condition_num_classes is {network.condition_num_classes}"
        )
    of_tokenizer = tokenizer.network.config.num_latent_tokens, tokenizer.network.config.codebook_size
    if (network.image_seq_len, network.codebook_size) != of_tokenizer:
        raise ConfigError("network.image_seq_len and network.codebook_size must be the tokenizer's")
