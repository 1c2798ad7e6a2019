"""What an exported file computes, with the names of its inputs and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.errors import ExportError
from models.generation import Generator
from models.networks.end_to_end import ImageToLatents, TokensToImage
from models.networks.generator import MaskGITViT, UViT
from models.networks.maskgit_vqgan import MaskGITVQGAN
from models.networks.titok import TiTok
from models.sampling.steps import StepNoise, StepParameters, apply_guidance, sample_step
from models.tokenizer import Tokenizer

_EXAMPLE_BATCH = 2  # torch.export treats a dimension of 1 as constant
_BATCH = {0: Dim("batch")}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A ``module`` and ``inputs`` of a batch of two. ``dynamic`` names the dimensions of inputs whose sizes are not fixed,
    by index; the batch is the first dimension of all inputs and ``outputs``.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[int, Dim]


def encoder_graph(tokenizer: Tokenizer) -> Graph:
    """``images`` uint8 [B, S, S, 3] -> ``ids`` int64 [B, K] (not for a VAE) and ``latents`` float32 [B, K, C]."""
    side = tokenizer.image_size
    images = torch.zeros(_EXAMPLE_BATCH, side, side, 3, dtype=torch.uint8)
    outputs = ("ids", "latents") if tokenizer.is_discrete else ("latents",)
    module = _Encoder(tokenizer.network, has_codes=tokenizer.is_discrete)
    return Graph(module=module, inputs={"images": images}, outputs=outputs, dynamic=_BATCH)


def decoder_graph(tokenizer: Tokenizer) -> Graph:
    """``ids`` int64 [B, K], or ``latents`` float32 [B, K, C] of a VAE -> ``images`` uint8 [B, S, S, 3].

    Of a prefix-decodable tokenizer the number of ids is dynamic, from ``min_tokens`` to K.

    Raises ``ExportError`` for a network without a pixel decoder.
    """
    network = tokenizer.network
    if isinstance(network, TiTok) and network.config.is_legacy and not network.config.finetune_decoder:
        raise ExportError(f"the decoder of {tokenizer.name} has no pixel decoder: it predicts MaskGIT-VQGAN codes")
    module, dynamic = TokensToImage(network), dict(_BATCH)
    if not tokenizer.is_discrete:
        latents = torch.zeros(_EXAMPLE_BATCH, tokenizer.num_tokens, tokenizer.token_size)
        return Graph(module=module, inputs={"latents": latents}, outputs=("images",), dynamic=dynamic)
    if tokenizer.min_tokens < tokenizer.num_tokens:
        dynamic[1] = Dim("length", min=tokenizer.min_tokens, max=tokenizer.num_tokens)
    ids = torch.zeros(_EXAMPLE_BATCH, tokenizer.num_tokens, dtype=torch.int64)
    return Graph(module=module, inputs={"ids": ids}, outputs=("images",), dynamic=dynamic)


def step_graph(generator: Generator) -> Graph:
    """One sampling step: ``tokens`` int64 [B, K] (V: masked), ``label`` int64 [B] (-1: no class) -> the next ``tokens``.

    The parameters of the step are the values of ``models.sampling.settings``, one for each row: ``guidance_weight``,
    ``from_unconditional``, ``logit_divisor``, ``token_noise_scale``, ``confidence_noise_scale``, ``num_masked``, ``last``.
    ``token_noise`` float32 [B, K, V] and ``confidence_noise`` [B, K] are uniform in (0, 1). The second output, ``sampled``,
    is the tokens before some were masked again.
    """
    batch, positions, codes = _EXAMPLE_BATCH, generator.num_tokens, generator.codebook_size
    inputs = {
        "tokens": torch.full((batch, positions), codes, dtype=torch.int64),
        "label": torch.zeros(batch, dtype=torch.int64),
        "guidance_weight": torch.ones(batch),  # not one tensor for all: torch.export would join the inputs
        "from_unconditional": torch.zeros(batch, dtype=torch.bool),
        "logit_divisor": torch.ones(batch),
        "token_noise_scale": torch.ones(batch),
        "confidence_noise_scale": torch.ones(batch),
        "num_masked": torch.ones(batch, dtype=torch.int64),
        "last": torch.zeros(batch, dtype=torch.bool),
        "token_noise": torch.full((batch, positions, codes), 0.5),
        "confidence_noise": torch.full((batch, positions), 0.5),
    }
    return Graph(module=_Step(generator.network), inputs=inputs, outputs=("tokens_after", "sampled"), dynamic=_BATCH)


class _Encoder(nn.Module):
    def __init__(self, network: TiTok | MaskGITVQGAN, *, has_codes: bool) -> None:
        super().__init__()
        self.to_latents = ImageToLatents(network)
        self.quantize = network.quantize if has_codes else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        latents = self.to_latents(images)
        if self.quantize is None:
            return (latents,)
        ids = self.quantize.distances(latents.flatten(0, 1)).argmin(dim=1)
        return ids.view(latents.shape[:2]), latents


class _Step(nn.Module):
    def __init__(self, network: MaskGITViT | UViT) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        tokens: Tensor,
        label: Tensor,
        guidance_weight: Tensor,
        from_unconditional: Tensor,
        logit_divisor: Tensor,
        token_noise_scale: Tensor,
        confidence_noise_scale: Tensor,
        num_masked: Tensor,
        last: Tensor,
        token_noise: Tensor,
        confidence_noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        parameters = StepParameters(
            label=label,
            token_key=label,  # not used: the noise is an input
            confidence_key=label,
            from_unconditional=from_unconditional,
            num_masked=num_masked,
            last=last,
            guidance_weight=guidance_weight,
            logit_divisor=logit_divisor,
            token_noise_scale=token_noise_scale,
            confidence_noise_scale=confidence_noise_scale,
        )
        conditional = self.network(tokens, label)
        unconditional = self.network(tokens, torch.full_like(label, -1))
        logits = apply_guidance(parameters, conditional, unconditional)
        noise = StepNoise(token_noise, confidence_noise)
        outcome = sample_step(parameters, logits, tokens, noise, mask_token=self.network.config.mask_token)
        return outcome.tokens, outcome.sampled
