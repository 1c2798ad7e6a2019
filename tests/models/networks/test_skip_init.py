"""Networks without initial values: no random numbers are drawn, and no slow imports happen."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from models.networks.skip_init import skip_init

_LOADS = """
import sys
from models import load_generator, load_tokenizer
load_tokenizer("titok-mini-32"), load_generator("titok-mini-32")
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_parameters_have_shapes_but_no_memory() -> None:
    state = torch.get_rng_state()
    with skip_init():
        layers = nn.ModuleList([nn.Embedding(3, 5), nn.Linear(5, 2)])
        drawn = torch.empty(4, 5).normal_(std=0.1)
    assert [tuple(parameter.shape) for parameter in layers.parameters()] == [(3, 5), (2, 5), (2,)]
    assert drawn.shape == (4, 5)
    assert all(tensor.is_meta for tensor in (drawn, *layers.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.empty(1).is_meta


def test_loading_a_model_imports_no_compiler() -> None:
    out = subprocess.run([sys.executable, "-c", _LOADS], check=True, capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "[]"
