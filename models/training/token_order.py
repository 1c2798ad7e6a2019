"""The order of a tokenizer's tokens: the most informative ones first, a start for training with tail drop.

The positions of a one-stage TiTok are interchangeable: encoder, decoder and generator know a token's position only by its
rows of the embeddings, so that the same images have the same tokens in any order. Trained without tail drop, their order
means nothing, and a prefix of a code says less than other tokens of the same number.

Positions are chosen one after another, each the one that explains most of what is left: forward selection by ridge
regression, from the vectors of the codes and the products of their channels, of the means of cells of the images.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoints.configuration import config_document
from models.checkpoints.loading import Checkpoint, open_checkpoint
from models.checkpoints.registry import GENERATORS
from models.data.datasets import ImageDataset, open_dataset
from models.data.decode_cache import Progress
from models.errors import CheckpointError
from models.networks.titok import TiTok
from models.training.checkpoints import save_checkpoint
from models.training.pretrained import load_frozen_tokenizer

_CELLS = 16  # of a side of an image
_IMAGES = 12_000
_BATCH = 64
_RIDGE = 1e-4
_TOKENIZER_POSITIONS = (
    "latent_tokens",
    "encoder.latent_token_positional_embedding",
    "decoder.latent_token_positional_embedding",
)
_GENERATOR_POSITIONS = ("pos_embed", "model.embeddings.position_embeddings.weight")  # U-ViT, ViT


def reorder(
    tokenizer: str, generator: str | None, *, data: Path, cache: Path, output: Path, progress: Progress | None = None
) -> list[int]:
    """Writes a tokenizer to ``output/tokenizer``, and a generator of its tokens to ``output/generator``, with the positions
    in the order that is returned, measured on the training images of ``data`` (see :func:`open_dataset`).

    Raises ``CheckpointError``, ``DataError``, ``OSError``.
    """
    network = load_frozen_tokenizer(tokenizer).network
    of_generator = None if generator is None else _open_generator(generator, network.config.num_latent_tokens)
    size = network.config.image_size
    images = open_dataset(data, "train", size=size, cache=cache, uncropped=True, progress=progress)  # as in training
    order = informative_order(network, images)
    tensors = reordered_tokenizer(network.state_dict(), order)
    save_checkpoint(output / "tokenizer", config_document(network.config), tensors)
    if of_generator is not None:
        save_checkpoint(output / "generator", dict(of_generator.config or {}), reordered_generator(of_generator, order))
    return order


@torch.no_grad()
def informative_order(network: TiTok, images: ImageDataset, *, count: int = _IMAGES, seed: int = 0) -> list[int]:
    """The positions 0..K-1 of a network, the most informative one first, measured on ``count`` of the images.

    Raises ``CheckpointError`` for a two-stage network, the tokens of which have features of many positions each.
    """
    if network.config.is_legacy or network.config.quantize_mode != "vq":
        raise CheckpointError("only the tokens of one-stage tokenizers with codes can be reordered")
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    codes, cells = [], []
    for start in range(0, len(rows), _BATCH):
        batch = images.batch(rows[start : start + _BATCH].numpy())
        codes.append(network.quantize.lookup(network.encode(batch).ids).cpu())
        cells.append(F.adaptive_avg_pool2d(batch, _CELLS).flatten(1).cpu())
    return forward_selection(_with_products(torch.cat(codes)), torch.cat(cells))


def forward_selection(features: Tensor, targets: Tensor) -> list[int]:
    """Orders K groups of features [N, K, F] by how much of the targets [N, T] each explains beyond those before it."""
    count, groups, width = features.shape
    x = (features.double() - features.double().mean(0)).flatten(1)
    y = targets.double() - targets.double().mean(0)
    gram, cross = x.T @ x, x.T @ y
    gram.diagonal().add_(_RIDGE * count)
    left, order = {group: slice(group * width, (group + 1) * width) for group in range(groups)}, []
    while left:
        explained = {
            group: (cross[own] * torch.linalg.solve(gram[own, own], cross[own])).sum().item()
            for group, own in left.items()
        }
        best = max(explained, key=explained.__getitem__)
        order.append(best)
        own = left.pop(best)
        # What the chosen group explains is taken out of the others and of the targets (Schur complement).
        shared = gram[:, own].clone()
        cross = cross - shared @ torch.linalg.solve(gram[own, own], cross[own])
        gram = gram - shared @ torch.linalg.solve(gram[own, own], gram[own])
    return order


def reordered_tokenizer(tensors: Mapping[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """The tensors of a tokenizer that gives the same tokens in another order."""
    return {name: tensor[order] if name in _TOKENIZER_POSITIONS else tensor for name, tensor in tensors.items()}


def reordered_generator(checkpoint: Checkpoint, order: list[int]) -> dict[str, Tensor]:
    """The tensors of a generator that generates the same tokens in another order. Raises ``CheckpointError``."""
    positions = _generator_positions(checkpoint, len(order))
    rows = [0, *(1 + position for position in order)]  # the class is first
    return {**checkpoint.tensors, positions: checkpoint.tensors[positions][..., rows, :]}


def _open_generator(source: str, count: int) -> Checkpoint:
    """A generator of ``count`` tokens, by name, file, folder or hub id. Raises ``CheckpointError``."""
    checkpoint = open_checkpoint(GENERATORS[source].weights if source in GENERATORS else source)
    if checkpoint.config is None:
        raise CheckpointError(f"{checkpoint.source} has no config.json beside it")
    _generator_positions(checkpoint, count)
    return checkpoint


def _generator_positions(checkpoint: Checkpoint, count: int) -> str:
    """The name of a generator's embeddings of the class and ``count`` positions. Raises ``CheckpointError``."""
    for name in _GENERATOR_POSITIONS:
        if name in checkpoint.tensors and checkpoint.tensors[name].shape[-2] == 1 + count:
            return name
    raise CheckpointError(f"{checkpoint.source} is not a generator of {count} tokens")


def _with_products(codes: Tensor) -> Tensor:
    """Codes [N, K, C] and the products of their channels: [N, K, C + C(C+1)/2]."""
    first, second = torch.triu_indices(codes.shape[2], codes.shape[2])
    return torch.cat([codes, codes[..., first] * codes[..., second]], dim=2)
