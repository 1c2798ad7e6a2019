"""Muon for the matrices of transformer blocks, AdamW for everything else.

Muon updates a matrix by its orthogonalised momentum. It follows torch.optim.Muon (Keller Jordan, "Muon: an optimizer for
hidden layers in neural networks", 2024; learning rates on AdamW's scale after arXiv 2502.16982, section 2.2) with two
differences: packed projections are updated as separate matrices, and matrices of one shape are orthogonalised together,
which is faster.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from models.training.config import OptimizerConfig, ScheduleConfig

BLOCKS = {"transformer", "layer", "in_blocks", "mid_block", "out_blocks"}
PACKED = ("in_proj_weight", "qkv.weight")
UNDECAYED = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed")


def orthogonalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices [N, R, C] -> float32 [N, R, C] with about the same singular vectors and singular values near 1.

    Five Newton-Schulz steps in ``dtype``; singular values end between 0.7 and 1.2.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).float()


class Muon(Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay.

    A group's ``parts`` is the number of matrices that its parameters are packed from along the rows (3: q, k, v).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.dtype = dtype
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                for matrix, update in zip(parameter.chunk(group["parts"]), ahead.chunk(group["parts"]), strict=True):
                    by_shape.setdefault(matrix.shape, []).append((matrix, update, group["lr"]))
        for shape, moves in by_shape.items():
            directions = orthogonalised(torch.stack([update for _, update, _ in moves]), self.dtype)
            # An orthogonal matrix has entries of mean square 1/max(shape); AdamW's updates have a root mean square of 0.2.
            scale = 0.2 * math.sqrt(max(shape))
            for (matrix, _, lr), direction in zip(moves, directions, strict=True):
                matrix.add_(direction, alpha=-lr * scale)


def learning_rate(schedule: ScheduleConfig, step: int, progress: float, *, start: int = 0) -> float:
    """Factor on the learning rates in ``step``: a linear warm-up from ``start``, then a cosine from 1 to ``final_lr``.

    ``progress`` of the run, from 0 to 1, is ahead of the steps if a clock limits it. Source: 1d-tokenizer, commit 942a96f.
    """
    if step - start < schedule.warmup_steps:
        return (step - start + 1) / schedule.warmup_steps
    warm = min(1.0, (start + schedule.warmup_steps) / schedule.steps)
    rest = max(0.0, progress - warm) / (1.0 - warm) if warm < 1.0 else 1.0
    return schedule.final_lr + (1.0 - schedule.final_lr) * (1.0 + math.cos(math.pi * rest)) / 2.0


def build_optimizers(network: nn.Module, config: OptimizerConfig, dtype: torch.dtype) -> list[Optimizer]:
    """The optimizers of the parameters that require gradients; ``dtype`` is the number format of Muon's Newton-Schulz steps.

    With a ``muon_lr``: Muon for the matrices of the blocks, AdamW without weight decay for the rest. Without: AdamW, in
    the groups of the published recipe.
    """
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if config.muon_lr is None:
        decayed = [parameter for name, parameter in named.items() if _is_decayed(name, parameter)]
        undecayed = [parameter for name, parameter in named.items() if not _is_decayed(name, parameter)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
        return [_adamw(groups, config)]
    matrices = {name: p for name, p in named.items() if p.ndim == 2 and BLOCKS.intersection(name.split("."))}
    packed = [parameter for name, parameter in matrices.items() if name.endswith(PACKED)]
    whole = [parameter for name, parameter in matrices.items() if not name.endswith(PACKED)]
    rest = [parameter for name, parameter in named.items() if name not in matrices]
    muon_groups: list[dict[str, Any]] = [{"params": whole}, {"params": packed, "parts": 3}]
    return [
        Muon(muon_groups, lr=config.muon_lr, weight_decay=config.weight_decay, dtype=dtype),
        _adamw([{"params": rest, "weight_decay": 0.0}], config),
    ]


def _is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether the published recipe applies weight decay to a tensor (1d-tokenizer, commit 942a96f)."""
    return parameter.ndim >= 2 and not any(part in name for part in UNDECAYED)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> AdamW:
    return AdamW(groups, lr=config.adamw_lr, betas=config.adamw_betas, fused=True)
