"""Vector quantization: latent vectors are replaced by their nearest codebook entries.

Source: TiTok (arXiv 2406.07550, section 3), whose quantizer follows VQ-VAE (arXiv 1711.00937) with the l2-normalised
codes of ViT-VQGAN (arXiv 2110.04627). Tensor names are those of the published checkpoints.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Assignment(NamedTuple):
    """Nearest codes: ``ids`` int64 [...], and ``margin`` float32 [...], how much farther the second nearest code is.

    Margins are squared distances. Below the latents' rounding error, rounding decides between the two codes.
    """

    ids: Tensor
    margin: Tensor


class QuantizerLosses(NamedTuple):
    """Scalar losses: ``commitment`` (already scaled by beta) moves latents to codes, ``codebook`` moves codes to latents."""

    commitment: Tensor
    codebook: Tensor


class VectorQuantizer(nn.Module):
    """A codebook of ``codebook_size`` vectors of ``token_size`` dimensions.

    With ``use_l2_norm`` latents and codes are normalised to the unit sphere. Distances are always computed in float32:
    in bfloat16 one to nine percent of the ids differ.
    """

    def __init__(
        self, codebook_size: int, token_size: int, *, use_l2_norm: bool, commitment_cost: float = 0.25
    ) -> None:
        super().__init__()
        self.use_l2_norm = use_l2_norm
        self.commitment_cost = commitment_cost
        self.embedding = nn.Embedding(codebook_size, token_size)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The codes that :meth:`lookup` returns, float32 [V, C]."""
        return self.normalised(self.embedding.weight.float())

    def normalised(self, vectors: Tensor) -> Tensor:
        """Vectors [..., C] on the unit sphere with ``use_l2_norm``, a zero vector excepted, else unchanged."""
        return F.normalize(vectors, dim=-1) if self.use_l2_norm else vectors

    def distances(self, latents: Tensor) -> Tensor:
        """Squared distances float32 [N, V] of latents [N, C] to every code."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = self.normalised(latents.float())
            codebook = self.codebook
            squares = latents.square().sum(1, keepdim=True) + codebook.square().sum(1)
            return torch.addmm(squares, latents, codebook.T, alpha=-2.0)

    def assign(self, latents: Tensor) -> Assignment:
        """The nearest codes of latents [..., C]; of equally near codes the first."""
        distances = self.distances(latents.reshape(-1, latents.shape[-1]))
        nearest, ids = distances.min(dim=1)
        second = distances.scatter_(1, ids[:, None], torch.inf).amin(dim=1)
        shape = latents.shape[:-1]
        return Assignment(ids.reshape(shape), (second - nearest).reshape(shape))

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes float32 [..., C] of ids int64 [...] in 0..V-1."""
        return self.normalised(F.embedding(ids, self.embedding.weight.float()))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, QuantizerLosses]:
        """For training: latents [B, K, C] -> codes [B, K, C] with straight-through gradients, ids [B, K], losses."""
        ids = self.assign(latents.detach()).ids
        latents = self.normalised(latents.float())
        codes = self.lookup(ids)
        losses = QuantizerLosses(
            commitment=self.commitment_cost * F.mse_loss(latents, codes.detach()),
            codebook=F.mse_loss(codes, latents.detach()),
        )
        return latents + (codes - latents).detach(), ids, losses
