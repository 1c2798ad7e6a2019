"""What a CUDA device must agree on with the CPU. Skipped where there is none; run by ``make gpu-check``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from models import load_generator, load_tokenizer
from models.preprocess import eval_crop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture(scope="module")
def images(photographs: list[Image.Image]) -> np.ndarray:
    return np.stack([eval_crop(photograph, 128) for photograph in photographs])


def test_ids_are_those_of_the_cpu_and_pixels_within_a_level(images: np.ndarray) -> None:
    on_cpu, on_gpu = (load_tokenizer("titok-mini-32", device=device) for device in ("cpu", "cuda"))
    ids = on_cpu.encode(images)
    assert (on_gpu.encode(images) == ids).all()
    assert (on_gpu.decode(ids).int() - on_cpu.decode(ids).int()).abs().max() <= 1


def test_ids_do_not_depend_on_company(images: np.ndarray) -> None:
    tokenizer = load_tokenizer("titok-mini-32", device="cuda")
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    for repeats in (1, 3, 16):
        assert (tokenizer.encode(np.tile(images, (repeats, 1, 1, 1))) == alone.repeat(repeats, 1)).all()


def test_the_same_seed_makes_the_tokens_of_the_cpu() -> None:
    on_cpu, on_gpu = (load_generator("titok-mini-32", device=device) for device in ("cpu", "cuda"))
    labels, seeds = [0, 1, None], [1, 2, 3]
    assert (on_gpu.generate(labels, seeds=seeds) == on_cpu.generate(labels, seeds=seeds)).float().mean() > 0.95


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_lower_precision_runs_and_stays_close(images: np.ndarray, dtype: str) -> None:
    exact, low = (load_tokenizer("titok-mini-32", device="cuda", dtype=kind) for kind in ("float32", dtype))
    ids = exact.encode(images)
    assert (low.decode(ids).int() - exact.decode(ids).int()).abs().float().mean() < 2.0
