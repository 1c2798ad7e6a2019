"""Pretrained networks that a run starts from or is trained against."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from models.checkpoints.loading import Checkpoint, open_checkpoint
from models.checkpoints.registry import TOKENIZERS
from models.checkpoints.tokenizer_network import load_tokenizer_network
from models.errors import CheckpointError
from models.networks.maskgit_vqgan import MaskGITVQGAN
from models.networks.titok import TiTok
from models.training.config import TokenizerRun
from models.training.initialisation import initialise_tokenizer, load_into_larger

N = TypeVar("N", bound=nn.Module)

PROXY_TOKENIZER = "maskgit-vqgan-f16"


@dataclass(frozen=True)
class FrozenTokenizer:
    """A trained tokenizer, and the ``digest`` of its weights."""

    network: TiTok
    digest: str


def build_tokenizer(run: TokenizerRun) -> TiTok:
    """The network of a run, initialised or with the weights of ``initial.checkpoint``. Raises ``CheckpointError``."""
    torch.manual_seed(run.schedule.seed)
    network = TiTok(run.network)
    initialise_tokenizer(network, run.initial.weights)
    if run.initial.checkpoint is not None:
        weights = load_tokenizer_weights(run.initial.checkpoint)
        load_into_larger(network, weights.tensors, weights.source)
    return network


def load_tokenizer_weights(source: str) -> Checkpoint:
    """The checkpoint of a variant by its name, or a file, a folder, a hub id. Raises ``CheckpointError``."""
    return open_checkpoint(TOKENIZERS[source].weights if source in TOKENIZERS else source)


def load_frozen_tokenizer(source: str, device: torch.device | str = "cpu") -> FrozenTokenizer:
    """A frozen tokenizer by a variant's name, a file, a folder or a hub id. Raises ``CheckpointError``."""
    checkpoint = load_tokenizer_weights(source)
    network = load_tokenizer_network(source, checkpoint)
    if not isinstance(network, TiTok) or network.config.quantize_mode != "vq":
        raise CheckpointError(f"{source} is not a TiTok tokenizer with codes")
    return FrozenTokenizer(_frozen(network, device), checkpoint.digest())


def load_vqgan(source: str, device: torch.device | str = "cpu") -> MaskGITVQGAN:
    """MaskGIT-VQGAN, frozen, from a variant's name, a file or a hub id. Raises ``CheckpointError``."""
    network = load_tokenizer_network(
        source if source in TOKENIZERS else PROXY_TOKENIZER, load_tokenizer_weights(source)
    )
    if not isinstance(network, MaskGITVQGAN):
        raise CheckpointError(f"{source} is not a MaskGIT-VQGAN")
    return _frozen(network, device)


def _frozen(network: N, device: torch.device | str) -> N:
    return network.eval().requires_grad_(False).to(device)
