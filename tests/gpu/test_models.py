"""What a CUDA device must agree on with the CPU, and with itself. Skipped where there is none; run by ``make gpu-check``.

Nothing here needs more than torch, NumPy, Pillow, safetensors, huggingface_hub, scikit-image and pytest.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import Tokenizer, load_generator, load_tokenizer
from models.networks.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from models.runtime.cuda_graphs import CudaRecorder
from models.runtime.device_memory import memory_bytes
from models.runtime.precision import FORMATS
from models.runtime.transfers import CudaTransfers, pin
from models.sampling.settings import SamplingSettings
from service.engine.protocol import RowState
from service.inference.device import ModelDevice
from tests.crops import crops_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

ROOT = Path(__file__).parents[2]
NAME = "titok-mini-32"
DEVICE = "cuda:0"


@pytest.fixture(scope="module")
def images(photographs: list[Image.Image]) -> np.ndarray:
    return crops_of(photographs, 48)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(NAME, device=DEVICE)


@pytest.fixture(scope="module")
def graphed() -> ModelDevice:
    """A device with CUDA graphs for batches up to 16."""
    device = ModelDevice(
        load_tokenizer(NAME, device=DEVICE),
        load_generator(NAME, device=DEVICE),
        max_batch_size=16,
        recorder=CudaRecorder(torch.device(DEVICE)),
    )
    device.warm_up()
    return device


# --- the same numbers as a CPU's -------------------------------------------------------------------------------------


def test_ids_are_those_of_the_cpu_and_pixels_within_a_level(tokenizer: Tokenizer, images: np.ndarray) -> None:
    on_cpu = load_tokenizer(NAME)
    ids = on_cpu.encode(images)
    assert (tokenizer.encode(images) == ids).all()
    assert (tokenizer.decode(ids).int() - on_cpu.decode(ids).int()).abs().max() <= 1


def test_the_same_seed_makes_the_tokens_of_the_cpu() -> None:
    on_cpu, on_gpu = (load_generator(NAME, device=device) for device in ("cpu", DEVICE))
    labels, seeds = [0, 1, None], [1, 2, 3]
    assert (on_gpu.generate(labels, seeds=seeds) == on_cpu.generate(labels, seeds=seeds)).float().mean() > 0.95


def test_float32_convolutions_are_not_left_to_tensor_float32() -> None:
    torch.manual_seed(0)
    network = MaskGITVQGAN(MaskGITVQGANConfig(image_size=64, hidden_channels=32))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)

    def latents(device: str) -> torch.Tensor:
        placed = Tokenizer(
            network, name="x", digest="0" * 64, source="test", device=torch.device(device), dtype="float32"
        )
        return placed.latents(pixels)

    on_gpu, on_cpu = latents(DEVICE), latents("cpu")
    assert (on_gpu - on_cpu).norm() < 2e-5 * on_cpu.norm()


# --- the same ids in every company, with graphs and without ----------------------------------------------------------


def test_ids_do_not_depend_on_the_batch(tokenizer: Tokenizer, images: np.ndarray) -> None:
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    for repeats in (1, 3, 8):
        assert (tokenizer.encode(np.tile(images, (repeats, 1, 1, 1))) == alone.repeat(repeats, 1)).all()


def test_graphs_compute_the_same_at_every_size(graphed: ModelDevice, tokenizer: Tokenizer, images: np.ndarray) -> None:
    assert graphed.status()["graphs"] == {lane: [1, 2, 4, 8, 16][: _sizes(limit)] for lane, limit in _limits(graphed)}
    expected = tokenizer.encode(images).numpy()
    for count in range(1, 19):
        ids = graphed.encode(images[:count])
        assert (ids == expected[:count]).all()
        pixels = tokenizer.decode(expected[:count]).numpy()
        assert np.abs(graphed.decode(ids).astype(int) - pixels).max() <= 1


def _limits(device: ModelDevice) -> list[tuple[str, int]]:
    return list(device.info.batch_limits.items())


def _sizes(limit: int) -> int:
    return limit.bit_length()


def test_sampling_steps_are_the_same_with_graphs_in_any_batch(graphed: ModelDevice) -> None:
    settings = SamplingSettings(steps=4, guidance_scale=4.0, guidance_decay="linear", temperature=3.0)
    generator = load_generator(NAME, device=DEVICE)
    labels = [0, None, 3, 7, None]
    expected = generator.generate(labels, seeds=range(5), **vars(settings)).numpy()  # type: ignore[arg-type]
    tokens: list[np.ndarray | None] = [None] * 5
    for step in range(settings.steps):
        states = [
            RowState(label=label, seed=seed, settings=settings, step=step, tokens=row)
            for seed, (label, row) in enumerate(zip(labels, tokens, strict=True))
        ]
        tokens = list(graphed.step(states).tokens)
    assert (np.stack(tokens) == expected).all()  # type: ignore[arg-type]


def test_results_are_the_callers_own(graphed: ModelDevice, images: np.ndarray) -> None:
    first = graphed.encode(images[:3])
    kept = first.copy()
    graphed.encode(images[3:6])
    assert (first == kept).all()


def test_a_function_that_cannot_be_recorded_is_called_instead() -> None:
    command = [sys.executable, "-m", "tests.gpu.unrecordable", torch.cuda.get_device_name()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "not recorded\n"), ended.stderr


# --- copies ----------------------------------------------------------------------------------------------------------


def test_batches_submitted_before_the_first_has_arrived_do_not_mix(
    graphed: ModelDevice, tokenizer: Tokenizer, images: np.ndarray
) -> None:
    expected = tokenizer.encode(images)
    model = graphed._tokenizer
    pending = [model.submit_encode(images[start : start + 7]) for start in range(0, 42, 7)]
    for start, arrived in zip(range(0, 42, 7), pending, strict=True):
        assert (arrived() == expected[start : start + 7]).all()
    decoded = [model.submit_decode(expected[start : start + 7]) for start in range(0, 42, 7)]
    for start, arrived in zip(range(0, 42, 7), decoded, strict=True):
        exact = tokenizer.decode(expected[start : start + 7]).int()
        assert (arrived().int() - exact).abs().max() <= 1


@pytest.fixture
def shared() -> np.ndarray:
    """Shared memory for eight images, uint8 [8, 128, 128, 3]."""
    return np.frombuffer(mmap.mmap(-1, 8 * 128 * 128 * 3), np.uint8).reshape(8, 128, 128, 3)


def test_shared_memory_is_pinned_read_from_and_written_to(
    graphed: ModelDevice, images: np.ndarray, shared: np.ndarray
) -> None:
    graphed.pin(shared)
    assert torch.from_numpy(shared).is_pinned()
    shared[:] = images[:8]
    ids = graphed.encode(shared)
    assert (ids == graphed.encode(images[:8])).all()
    assert graphed.decode(ids, out=shared) is shared
    assert np.abs(shared.astype(int) - graphed.decode(ids)).max() <= 1


def test_memory_that_cannot_be_pinned_is_an_error_and_the_device_works_on(shared: np.ndarray) -> None:
    device = torch.device(DEVICE)
    unpin = pin(shared, device)
    try:
        with pytest.raises(RuntimeError, match="cannot be pinned"):
            pin(shared, device)  # twice
        assert torch.ones(4, device=device).sum().item() == 4.0
    finally:
        unpin()
    assert not torch.from_numpy(shared).is_pinned()


def test_a_copy_is_not_overtaken_by_the_work_on_it() -> None:
    device = torch.device(DEVICE)
    transfers = CudaTransfers(device)
    pinned = [torch.full((1 << 22,), float(index)).pin_memory() for index in range(16)]
    arriving = [transfers.run(host, lambda x: (x * 2, x.sum()[None])) for host in pinned]
    for index, arrived in enumerate(arriving):
        doubled, total = arrived()
        assert (doubled == 2.0 * index).all()
        assert total == float(index << 22)


# --- memory and precision --------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch_and_loses_nothing(tokenizer: Tokenizer, images: np.ndarray) -> None:
    device = ModelDevice(tokenizer, None, max_batch_size=1024)
    expected = tokenizer.encode(images)
    many = np.tile(images, (20, 1, 1, 1))
    torch.cuda.empty_cache()
    used = memory_bytes(torch.device(DEVICE))
    assert used is not None
    room = (used["reserved"] + (300 << 20)) / used["total"]
    torch.cuda.set_per_process_memory_fraction(min(1.0, room), DEVICE)
    try:
        ids = device.encode(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert (ids == expected.repeat(20, 1).numpy()).all()
    assert device.batch_limits["encode"] < 960
    status = device.status()
    assert status["out_of_memory"] >= 1  # type: ignore[operator]
    assert status["memory"]["total"] == used["total"]  # type: ignore[index]


@pytest.mark.parametrize("dtype", ["auto", "tf32", "tf32x3", "float16", "bfloat16"])
def test_lower_precision_runs_stays_close_and_names_its_revision(
    tokenizer: Tokenizer, images: np.ndarray, dtype: str
) -> None:
    if dtype.startswith("tf32") and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this device has no TF32")
    low = load_tokenizer(NAME, device=DEVICE, dtype=dtype)
    ids = tokenizer.encode(images)
    assert (low.decode(ids).int() - tokenizer.decode(ids).int()).abs().float().mean() < 2.0
    assert (low.encode(images) == ids).float().mean() > 0.8
    suffix = "" if dtype == "auto" else FORMATS[dtype].suffix
    assert low.revision == tokenizer.revision + suffix


def test_three_passes_are_nearer_to_float32_than_one(tokenizer: Tokenizer, images: np.ndarray) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this device has no TF32")
    exact = tokenizer.latents(images)
    one, three = (load_tokenizer(NAME, device=DEVICE, dtype=dtype).latents(images) for dtype in ("tf32", "tf32x3"))
    assert (three - exact).norm() < 1e-4 * exact.norm()
    assert (three - exact).norm() < 0.1 * (one - exact).norm()
