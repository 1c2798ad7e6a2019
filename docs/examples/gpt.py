"""Trains a small class-conditional GPT on the tokens of ``titok tokenize``, and writes samples for ``titok detokenize``.

    python docs/examples/gpt.py tokens samples --minutes 3 --count 500

The label is the first position; position k predicts token k. The labels must be integers.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from models.data.tokens import TokenDataset


class GPT(nn.Module):
    """A decoder of transformer blocks, in plain PyTorch."""

    def __init__(self, classes: int, codebook_size: int, num_tokens: int, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.labels = nn.Embedding(classes, width)
        self.codes = nn.Embedding(codebook_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        block = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, codebook_size)

    def forward(self, labels: Tensor, ids: Tensor) -> Tensor:
        """Labels [B] and the first k ids [B, k] -> logits [B, k + 1, V] of each next id."""
        x = torch.cat([self.labels(labels)[:, None], self.codes(ids)], dim=1)
        x = x + self.positions[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.blocks(x, mask=mask, is_causal=True))

    @torch.inference_mode()
    def sample(self, labels: Tensor, num_tokens: int, temperature: float = 1.0) -> Tensor:
        """Labels [B] -> ids [B, K]."""
        ids = labels.new_empty(len(labels), 0)
        for _ in range(num_tokens):
            logits = self(labels, ids)[:, -1] / temperature
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return ids


def train(gpt: GPT, tokens: TokenDataset, *, minutes: float, batch_size: int = 128, rate: float = 1e-3) -> None:
    """Trains on all crops until the time is over."""
    device = gpt.positions.device
    optimizer = torch.optim.AdamW(gpt.parameters(), rate, weight_decay=0.05)
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        for batch in DataLoader(tokens, batch_size, shuffle=True):
            progress = (time.monotonic() - start) / (60 * minutes)
            optimizer.param_groups[0]["lr"] = rate * max(min(20 * progress, 1 - progress), 0.02)
            ids, labels = batch["ids"].to(device), batch["label"].to(device)
            loss = F.cross_entropy(gpt(labels, ids[:, :-1]).flatten(0, 1), ids.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
            optimizer.step()
            step += 1
            if progress >= 1:
                break
        print(f"step {step}  loss {loss.item():.3f}  {progress:.0%}", flush=True)


def write_samples(gpt: GPT, tokens: TokenDataset, folder: Path, count: int, batch_size: int = 250) -> None:
    """Samples with the labels of evenly spaced images, as JSON lines."""
    labels = torch.from_numpy(tokens.labels[torch.linspace(0, len(tokens.labels) - 1, count).long()])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "samples.jsonl").open("w") as file:
        for batch in labels.to(gpt.positions.device).split(batch_size):
            for label, ids in zip(batch.tolist(), gpt.sample(batch, tokens.num_tokens).tolist(), strict=True):
                file.write(json.dumps({"class_id": label, "tokens": ids}) + "\n")


def run(source: Path, samples: Path, *, minutes: float, count: int, width: int, layers: int, device: str) -> None:
    """Trains on the tokens in ``source`` and writes ``count`` samples to the folder ``samples``."""
    tokens = TokenDataset(source)
    gpt = GPT(int(tokens.labels.max()) + 1, tokens.codebook_size, tokens.num_tokens, width, layers).to(device)
    train(gpt, tokens, minutes=minutes)
    write_samples(gpt.eval(), tokens, samples, count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="output folder of titok tokenize")
    parser.add_argument("samples", type=Path, help="folder for the samples")
    parser.add_argument("--minutes", type=float, default=3, help="time of training")
    parser.add_argument("--count", type=int, default=500, help="number of samples")
    parser.add_argument("--width", type=int, default=128, help="width of the network, a multiple of 32")
    parser.add_argument("--layers", type=int, default=4, help="number of blocks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run(**vars(parser.parse_args()))
