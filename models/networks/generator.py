"""Generator networks MaskGIT ViT and U-ViT: predict masked tokens from known tokens and a class.

::

    [class, token_1 .. token_K]  ->  transformer  ->  drop the class position  ->  logits [B, K, V]

One embedding table holds image codes 0..V-1, the mask token V, classes V+1+c, and the null class V+1+C ("no class").
Sources: MaskGIT (arXiv 2202.04200), U-ViT (arXiv 2209.12152), TiTok (arXiv 2406.07550, section 4), with
the layout of the published checkpoints (1d-tokenizer, commit 942a96f). The transformers package is not used: its recent
releases tie this head to the embedding table, and cannot load the published weights.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.attention import attend


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Network configuration. ``model_type`` is ``ViT`` (L-32, B-64) or ``UViT`` (S-128), which has no ``dropout``."""

    model_type: Literal["ViT", "UViT"]
    image_seq_len: int
    codebook_size: int = 4096
    condition_num_classes: int = 1000
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} attention heads"
            )

    @property
    def mask_token(self) -> int:
        """The id of a masked token."""
        return self.codebook_size

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding table: codes, the mask, the classes, the null class."""
        return self.codebook_size + 1 + self.condition_num_classes + 1


class _TokenInput(nn.Module):
    """Base class: joins labels and tokens to the input sequence."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config

    def _sequence(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Tokens int64 [B, K], labels int64 [B] (negative: no class) -> ids int64 [B, 1 + K]."""
        classes = self.config.condition_num_classes
        rows = torch.where(labels < 0, classes, labels) + self.config.codebook_size + 1
        return torch.cat([rows[:, None], tokens], dim=1)

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Sets the dtype of the blocks' matrices; norms, residual stream, embeddings and head stay float32."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("lm_head"):
                module.to(dtype=dtype)


# --- MaskGIT ViT: BERT, post-norm ------------------------------------------------------------------------------------


class _SelfAttention(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        q, k, v = self.query(x), self.key(x), self.value(x)
        return attend(q, k, v, self.heads, fused=not self.training, dropout=dropout)


class _ResidualOutput(nn.Module):
    """A linear layer, residual connection and layer norm."""

    def __init__(self, in_features: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(residual + self.dropout(self.dense(x)))
        return out


class _BertLayer(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": _SelfAttention(config), "output": _ResidualOutput(config.hidden_size, config)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = _ResidualOutput(config.intermediate_size, config)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] float32 -> the same; matrices run in the dtype of their weights."""
        dtype = self.output.dense.weight.dtype
        low = x.to(dtype)
        x = self.attention["output"](self.attention["self"](low), x)
        out: Tensor = self.output(F.gelu(self.intermediate["dense"](x.to(dtype))), x)
        return out


class _BertEmbeddings(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(1 + config.image_seq_len, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        # Only token type 0 occurs; the published weights need its embedding to be added.
        x = self.word_embeddings(ids) + self.position_embeddings.weight + self.token_type_embeddings.weight[0]
        out: Tensor = self.dropout(self.LayerNorm(x))
        return out


class MaskGITViT(_TokenInput):
    """The generator of TiTok-L-32 and TiTok-B-64: a BERT encoder with a linear head."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.model = nn.ModuleDict(
            {
                "embeddings": _BertEmbeddings(config),
                "encoder": nn.ModuleDict(
                    {"layer": nn.ModuleList(_BertLayer(config) for _ in range(config.num_hidden_layers))}
                ),
                "lm_head": nn.Linear(config.hidden_size, config.codebook_size),
            }
        )

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Tokens int64 [B, K] in 0..V (V: masked), labels int64 [B] (negative: no class) -> float32 [B, K, V]."""
        x = self.model["embeddings"](self._sequence(tokens, labels))
        for layer in self.model["encoder"]["layer"]:  # type: ignore[index]
            x = layer(x)
        logits: Tensor = self.model["lm_head"](x[:, 1:])
        return logits.float()


# --- U-ViT: pre-norm, with long skip connections ---------------------------------------------------------------------


class _UViTAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out: Tensor = self.proj(attend(q, k, v, self.heads, fused=not self.training))
        return out


class _UViTBlock(nn.Module):
    def __init__(self, config: GeneratorConfig, *, skip: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width)
        self.attn = _UViTAttention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width)
        hidden = config.intermediate_size
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """[B, N, D] float32, and for an out-block its in-block's result -> [B, N, D]."""
        dtype = self.attn.proj.weight.dtype
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1).to(dtype)).float()
        x = x + self.attn(self.norm1(x).to(dtype))
        out: Tensor = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x).to(dtype))))
        return out


class UViT(_TokenInput):
    """The generator of TiTok-S-128 and of the bundled checkpoint."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        width, half = config.hidden_size, config.num_hidden_layers // 2
        self.embeddings = nn.Embedding(config.vocabulary_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.image_seq_len, width).normal_(std=0.02))
        self.in_blocks = nn.ModuleList(_UViTBlock(config) for _ in range(half))
        self.mid_block = _UViTBlock(config)
        self.out_blocks = nn.ModuleList(_UViTBlock(config, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, config.codebook_size)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Tokens int64 [B, K] in 0..V (V: masked), labels int64 [B] (negative: no class) -> float32 [B, K, V]."""
        x = self.embeddings(self._sequence(tokens, labels)) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        logits: Tensor = self.lm_head(self.norm(x)[:, 1:])
        return logits.float()


def build_generator(config: GeneratorConfig) -> MaskGITViT | UViT:
    """The network for ``config.model_type``, with random weights."""
    return MaskGITViT(config) if config.model_type == "ViT" else UViT(config)
