"""Weight initialisation.

``published`` is that of the published recipes (standard deviation 0.02), for wide networks: a narrow one predicts the
mean image for a thousand steps. With ``fan-in`` each matrix keeps the variance of its input (normal, 1/sqrt(fan-in)),
and the last layer starts near a constant.
"""

import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from models.errors import CheckpointError
from models.networks.titok import TiTok

MIDDLE_GREY = 0.45
PUBLISHED_STD = 0.02


@torch.no_grad()
def initialise(network: nn.Module, *, last: nn.Linear | nn.Conv2d, last_std: float) -> None:
    """Initialises linear layers and convolutions by fan-in, and ``last`` with ``last_std``; embeddings are unchanged."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(0.0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
    last.weight.normal_(0.0, last_std)


@torch.no_grad()
def initialise_as_published(network: nn.Module) -> None:
    """Linear layers, convolutions and embeddings: normal with 0.02, truncated at two deviations; biases zero.

    Single vectors and codebooks are unchanged: their constructors initialise them as published. Source: 1d-tokenizer,
    commit 942a96f.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias") and parameter.ndim == 1:
            parameter.zero_()
        elif name.endswith("weight") and parameter.ndim >= 2 and "quantize" not in name:
            nn.init.trunc_normal_(parameter, std=PUBLISHED_STD, a=-2.0 * PUBLISHED_STD, b=2.0 * PUBLISHED_STD)


@torch.no_grad()
def initialise_tokenizer(network: TiTok, scheme: Literal["fan-in", "published"]) -> None:
    """Initialises a tokenizer of either family."""
    config = network.config
    if scheme == "published":
        initialise_as_published(network)
        return
    encoder, decoder = network.encoder, network.decoder
    conv_head = config.pixel_head == "conv" and not config.is_legacy
    last = cast(nn.Conv2d, decoder.head.out if conv_head else decoder.ffn[-1])
    initialise(network, last=last, last_std=0.01)
    # Input and output are centred at middle grey. Without that, a patch's embedding is its brightness times one
    # direction, the following norm removes the brightness, and the network keeps predicting the mean image.
    cast(Tensor, encoder.patch_embed.bias).copy_(-MIDDLE_GREY * encoder.patch_embed.weight.flatten(1).sum(1))
    cast(Tensor, last.bias).fill_(0.0 if config.is_legacy else MIDDLE_GREY)
    # Positional embeddings are as large as the content that they are added to (patches about 0.25, codes about 0.3).
    for part in (encoder, decoder):
        grid = math.isqrt(len(part.positional_embedding) - 1)
        part.positional_embedding[1:] = 0.3 * sinusoidal_embedding(grid, part.positional_embedding.shape[1])
        part.latent_token_positional_embedding.normal_(0.0, 0.3)
    if conv_head:
        # Convolutions are several times faster with channels last in memory.
        decoder.head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def sinusoidal_embedding(grid: int, width: int) -> Tensor:
    """2-D sinusoidal positional embeddings float32 [G*G, D] of mean square 1.

    The row in one half of the channels and the column in the other, with periods from two cells to four grids.
    """
    periods = torch.logspace(math.log2(2.0), math.log2(4.0 * grid), -(-width // 4), base=2.0)
    angles = 2.0 * math.pi * (torch.arange(grid) + 0.5)[:, None] / periods
    line = torch.cat([angles.sin(), angles.cos()], dim=1)[:, : width // 2]  # [G, D/2]
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return math.sqrt(2.0) * torch.cat([rows, columns], dim=2).flatten(0, 1)


@torch.no_grad()
def load_into_larger(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Copies a trained network's ``tensors`` into one of the same shape, or a wider or deeper one.

    A larger tensor gets the old one as its leading corner, and zeros where new features would reach old outputs, so that
    the larger network computes the same function (Net2Net, arXiv 1511.05641). The last layer of each new residual pair or
    block is zero for the same reason. Returns the names of the tensors that are new.

    Raises :class:`CheckpointError` for a tensor that the network lacks or has in a smaller shape.
    """
    own = network.state_dict()
    for name, tensor in tensors.items():
        if name not in own:
            raise CheckpointError(f"{source} has {name}, which the network to be trained does not have")
        target = own[name]
        if tensor.ndim != target.ndim or any(a > b for a, b in zip(tensor.shape, target.shape, strict=True)):
            raise CheckpointError(f"{source} has {name} {list(tensor.shape)}, which does not fit {list(target.shape)}")
        if target.ndim >= 2:
            target[:, tensor.shape[1] :] = 0.0
        target[tuple(slice(size) for size in tensor.shape)] = tensor.to(target.dtype)
    new = [name for name in own if name not in tensors]
    for name in new:
        last_of_pair = (".coarse." in name or ".fine." in name) and name.split(".")[-2] == "2"
        last_of_block = ".attn.out_proj." in name or ".mlp.c_proj." in name
        if last_of_pair or last_of_block or ".inject_" in name:
            own[name].zero_()
    return new
