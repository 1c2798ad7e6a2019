"""``ModelDevice``: batches of arrays and row states in, arrays out."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from models import Generator, Tokenizer
from models.checkpoints.bundled import BUNDLED_WEIGHTS, DEFAULT_VARIANT
from models.errors import UnknownVariantError
from models.runtime.device_memory import is_out_of_memory
from models.sampling.settings import SamplingSettings
from service.engine.protocol import ConfigurationError, RowState
from service.inference.device import ModelDevice, open_device
from service.inference.loading import load_models
from service.settings import Settings
from tests.recorders import CallingRecorder
from tests.tiny_models import tiny_generator, tiny_tokenizer

SETTINGS = SamplingSettings(steps=5, guidance_scale=3.0, guidance_decay="linear", temperature=4.0)


@pytest.fixture
def device() -> ModelDevice:
    return ModelDevice(tiny_tokenizer(), tiny_generator())


def state(label: int | None = 1, seed: int = 7, *, step: int = 0, tokens: np.ndarray | None = None) -> RowState:
    return RowState(label=label, seed=seed, settings=SETTINGS, step=step, tokens=tokens)


def test_stepping_to_the_end_equals_generate(device: ModelDevice) -> None:
    states = [state(None, 1), state(2, 2), state(4, 3)]
    for step in range(SETTINGS.steps):
        stepped = device.step(pickle.loads(pickle.dumps(states)))  # noqa: S301  as to another process
        assert (stepped.tokens.dtype, stepped.sampled.dtype, stepped.finished.dtype) == (np.int64, np.int64, np.bool_)
        assert stepped.tokens.shape == stepped.sampled.shape == (3, 16)
        assert stepped.finished.tolist() == [step == SETTINGS.steps - 1] * 3
        known = stepped.tokens != 64
        assert (stepped.tokens[known] == stepped.sampled[known]).all()
        states = [
            state(was.label, was.seed, step=was.step + 1, tokens=tokens)
            for was, tokens in zip(states, stepped.tokens, strict=True)
        ]
    expected = tiny_generator().generate([None, 2, 4], seeds=[1, 2, 3], **vars(SETTINGS))
    assert (np.stack([done.tokens for done in states if done.tokens is not None]) == expected.numpy()).all()


def test_read_only_tokens_can_be_stepped(device: ModelDevice) -> None:
    tokens = device.step([state()]).tokens[0]
    expected = device.step([state(step=1, tokens=tokens)]).tokens
    tokens.flags.writeable = False
    assert (device.step([state(step=1, tokens=tokens)]).tokens == expected).all()


def test_a_step_does_not_depend_on_other_rows_and_is_repeatable(device: ModelDevice) -> None:
    first = state(3, 5)
    later = state(1, 6, step=2, tokens=device.step([state(1, 6)]).tokens[0])
    unguided = state(None, 8)
    together, again = (device.step([first, unguided, later]) for _ in range(2))
    assert (together.tokens == again.tokens).all()
    for row, tokens in zip([first, unguided, later], together.tokens, strict=True):
        assert (device.step([row]).tokens[0] == tokens).all()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            RowState(label=1, seed=0, settings={"steps": 8}, step=0, tokens=None),
            TypeError,
            "SamplingSettings, not dict",
        ),
        (state(5), ValueError, r"class 5 is out of range 0\.\.4"),
        (state(step=5), ValueError, r"step 5 is out of range 0\.\.4"),
        (state(step=1, tokens=np.full(16, 65)), ValueError, "64 for a masked one"),
        (state(step=1, tokens=np.zeros(3, np.int64)), ValueError, r"tokens int64 \[16\]"),
    ],
)
def test_an_invalid_row_state_is_rejected(
    device: ModelDevice, wrong: RowState, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        device.step([state(), wrong])


def test_stepping_without_a_generator_raises_type_error() -> None:
    with pytest.raises(TypeError, match="no generator"):
        ModelDevice(tiny_tokenizer(), None).step([state()])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


class ShortOfMemory:
    """A model with memory for a limited number of images, which records the batch sizes."""

    def __init__(self, model: Tokenizer | Generator, fits: int) -> None:
        self.model, self.fits = model, fits
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.model, name)
        if name not in ("submit_encode", "encode", "submit_decode", "decode", "advance"):
            return member

        def limited(rows: Any, **options: Any) -> Any:
            self.batches.append(len(rows))
            if len(rows) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return member(rows, **options)

        return limited


def short_of_memory(fits: int, **options: Any) -> tuple[ModelDevice, ShortOfMemory, ShortOfMemory]:
    tokenizer, generator = ShortOfMemory(tiny_tokenizer(), fits), ShortOfMemory(tiny_generator(), fits)
    device = ModelDevice(cast("Tokenizer", tokenizer), cast("Generator", generator), **options)
    return device, tokenizer, generator


def test_a_batch_larger_than_the_limit_runs_in_parts() -> None:
    device, tokenizer, generator = short_of_memory(1000, max_batch_size=4)
    whole = ModelDevice(tiny_tokenizer(), tiny_generator())
    tokens = whole.encode(images(10))
    assert (device.encode(images(10)) == tokens).all()
    assert (device.decode(tokens) == whole.decode(tokens)).all()
    assert tokenizer.batches == [4, 4, 2, 4, 4, 2]
    states = [state(label, seed) for seed, label in enumerate([None, 1, 2, 3, 4])]
    assert (device.step(states).tokens == whole.step(states).tokens).all()
    assert generator.batches == [4, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_may_have_one_image_or_none(device: ModelDevice, count: int) -> None:
    tokens = device.encode(images(count))
    assert tokens.shape == (count, 16)
    assert device.decode(tokens).shape == (count, 32, 32, 3)


def test_out_of_memory_halves_the_limit_and_loses_nothing() -> None:
    device, tokenizer, generator = short_of_memory(3, max_batch_size=16)
    whole = ModelDevice(tiny_tokenizer(), tiny_generator())
    expected = whole.encode(images(12))
    assert (device.encode(images(12)) == expected).all()
    assert tokenizer.batches == [12, 6, 3, 3, 3, 3]
    assert device.batch_limits == {"encode": 3, "decode": 16, "generate": 16}
    assert device.info.batch_limits == {"encode": 16, "decode": 16, "generate": 16}
    assert device.status() == {
        "batch_limits": {"encode": 3, "decode": 16, "generate": 16},
        "measured_limits": {"encode": 16, "decode": 16, "generate": 16},
        "out_of_memory": 2,
        "graphs": {"encode": [], "decode": [], "generate": []},
        "padding": {"encode": 0.0, "decode": 0.0, "generate": 0.0},
        "runtimes": {"encoder": "torch", "decoder": "torch"},
        "memory": None,
        "sensors": None,
    }
    device.encode(images(5))
    assert tokenizer.batches[6:] == [3, 2]
    states = [state(1, seed) for seed in range(4)]
    assert (device.step(states).tokens == whole.step(states).tokens).all()
    assert generator.batches == [4, 2, 2]
    assert device.status()["out_of_memory"] == 3


def test_one_image_that_does_not_fit_raises_out_of_memory() -> None:
    device, tokenizer, _ = short_of_memory(0, max_batch_size=2)
    with pytest.raises(MemoryError, match="one image does not fit into memory: CUDA out of memory"):
        device.encode(images(2))
    assert tokenizer.batches == [2, 1]
    assert device.batch_limits["encode"] == 1
    assert device.status()["out_of_memory"] == 2


def test_a_tail_that_does_not_fit_beside_the_part_before_it_halves_what_was_in_flight() -> None:
    device = ModelDevice(tiny_tokenizer(), None, max_batch_size=8)
    in_flight = 0

    def submit(part: slice) -> Callable[[], int]:
        nonlocal in_flight
        count = part.stop - part.start
        if in_flight + count > 8:
            in_flight = 0
            raise torch.OutOfMemoryError("CUDA out of memory")
        in_flight += count

        def arrived() -> int:
            nonlocal in_flight
            in_flight -= count
            return count

        return arrived

    assert sum(device._in_parts("encode", 11, submit)) == 11
    assert device.batch_limits["encode"] == 4
    assert device._in_parts("encode", 11, submit) == [4, 4, 3]


def test_other_errors_are_not_retried(device: ModelDevice) -> None:
    with pytest.raises(ValueError, match="expected images"):
        device.encode(np.zeros((3, 16, 16, 3), np.uint8))
    assert device.status()["out_of_memory"] == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_errors_of_all_kinds_are_recognized(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_warm_up_finds_limits_within_the_bound_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.device._CPU_TRIAL_SECONDS", math.inf)  # every size, as on a GPU
    device, tokenizer, generator = short_of_memory(4, max_batch_size=64, batch_seconds=60.0)
    device.warm_up()
    assert set(device.batch_limits) == {"encode", "decode", "generate"}
    assert all(limit in (1, 2, 4) for limit in device.batch_limits.values())
    assert max(tokenizer.batches) <= 8
    assert set(generator.batches) <= {1, 2, 4, 8}
    assert device.status()["out_of_memory"] == 0  # trials do not count


def test_max_batch_size_bounds_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.device._CPU_TRIAL_SECONDS", math.inf)
    device, tokenizer, _ = short_of_memory(1000, max_batch_size=2)
    device.warm_up()
    assert max(device.batch_limits.values()) <= 2
    assert max(tokenizer.batches) == 2


def test_known_limits_are_not_measured_again() -> None:
    device, tokenizer, generator = short_of_memory(1000, max_batch_size=16)
    device.warm_up({"encode": 8, "decode": 4, "generate": 64})
    assert device.batch_limits == {"encode": 8, "decode": 4, "generate": 16}
    assert set(tokenizer.batches) == set(generator.batches) == {1}


def test_a_vae_is_warmed_up_and_its_graphs_are_recorded() -> None:
    recorder = CallingRecorder()
    vae = tiny_tokenizer(quantize_mode="vae")
    device = ModelDevice(vae, None, max_batch_size=3, recorder=recorder)
    device.warm_up()
    assert (device.info.codes, device.info.latent_format.encoded_shape) == (None, (16, 10))
    moments = device.latents(images(7))
    assert recorder.replays >= 3
    assert np.allclose(moments, vae.submit_latents(images(7))(), atol=1e-5)
    latents = device.info.latent_format.latents_of(moments)
    assert np.abs(device.decode(latents).astype(int) - vae.decode(latents).numpy()).max() <= 1
    with pytest.raises(TypeError, match="is a VAE"):
        device.encode(images(1))


def test_graphs_are_recorded_up_to_each_limit_and_give_equal_results() -> None:
    recorder = CallingRecorder()
    device = ModelDevice(tiny_tokenizer(), tiny_generator(), max_batch_size=3, recorder=recorder)
    plain = ModelDevice(tiny_tokenizer(), tiny_generator())
    device.warm_up()
    tokens = plain.encode(images(7))
    assert (device.encode(images(7)) == tokens).all()
    assert np.abs(device.decode(tokens).astype(int) - plain.decode(tokens)).max() <= 1
    states = [state(label, seed) for seed, label in enumerate([None, 1, 2, 3, 4])]
    assert (device.step(states).tokens == plain.step(states).tokens).all()
    assert set(recorder.recorded) <= {1, 2, 3}
    assert recorder.replays >= 5


def test_the_padding_ratio_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.device.find_batch_limit", lambda *_, **__: 4)
    device = ModelDevice(tiny_tokenizer(), None, recorder=CallingRecorder())
    device.warm_up()
    assert device.status()["padding"] == {"encode": 0.0, "decode": 0.0}
    device.encode(images(7))  # batches of 4 and 3, the latter padded to 4
    assert device.status()["padding"] == {"encode": 1 / 8, "decode": 0.0}


def test_without_graphs_batches_run_and_a_warning_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = CallingRecorder(fails="operation not permitted when stream is capturing")
    device = ModelDevice(tiny_tokenizer(), tiny_generator(), max_batch_size=2, recorder=recorder)
    device.warm_up()
    assert "no CUDA graphs (operation not permitted when stream is capturing)" in caplog.text
    assert device.encode(images(2)).shape == (2, 16)


def test_a_graph_that_does_not_fit_into_memory_halves_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.device.find_batch_limit", lambda *_, **__: 8)
    recorder = CallingRecorder(fits=2)
    device = ModelDevice(tiny_tokenizer(), None, recorder=recorder)
    device.warm_up()
    assert device.batch_limits == {"encode": 2, "decode": 2}
    assert recorder.recorded == [8, 4, 2, 1, 8, 4, 2, 1]
    assert device.encode(images(5)).shape == (5, 16)


def test_a_restart_that_is_short_of_memory_starts_with_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def calibrate(_: Tokenizer, largest_batch: int) -> None:
        if largest_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("service.inference.device.calibrate", calibrate)
    device = ModelDevice(tiny_tokenizer(), None)
    device.warm_up({"encode": 8, "decode": 4})
    assert device.batch_limits == device.info.batch_limits == {"encode": 2, "decode": 4}
    assert device.status()["measured_limits"] == {"encode": 8, "decode": 4}


def test_out_of_memory_drops_the_graphs_above_the_new_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.device.find_batch_limit", lambda *_, **__: 4)
    device, tokenizer, _ = short_of_memory(1000, recorder=CallingRecorder())
    device.warm_up()
    assert tokenizer.encoder.sizes == [1, 2, 4]
    tokenizer.fits = 2
    device.encode(images(4))
    assert tokenizer.encoder.sizes == [1, 2]


def test_decode_writes_into_a_given_array() -> None:
    device = ModelDevice(tiny_tokenizer(), None, max_batch_size=2)
    tokens = device.encode(images(5))
    out = np.zeros((5, 32, 32, 3), np.uint8)
    assert device.decode(tokens, out=out) is out
    assert (out == device.decode(tokens)).all()


def test_pinning_memory_does_nothing_on_a_cpu(device: ModelDevice) -> None:
    device.pin(np.zeros((4, 32, 32, 3), np.uint8))


def test_memory_that_cannot_be_pinned_only_logs_a_warning(
    device: ModelDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("49152 bytes cannot be pinned: CUDA error 2")

    monkeypatch.setattr("service.inference.device.pin", refuse)
    device.pin(np.zeros((4, 32, 32, 3), np.uint8))
    assert "not pinned, which is slower: 49152 bytes cannot be pinned" in caplog.text


def test_a_missing_cuda_device_is_named_in_the_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigurationError, match=r"TITOK_DEVICES: .* finds no CUDA device here, not cuda:1"):
        open_device(Settings(devices="cuda:1"))


def test_a_device_without_a_generator_has_no_lane_for_it() -> None:
    assert set(ModelDevice(tiny_tokenizer(), None).info.batch_limits) == {"encode", "decode"}


def test_a_tokenizer_and_a_generator_of_ones_own_are_served_together() -> None:
    folder = BUNDLED_WEIGHTS / DEFAULT_VARIANT
    mine = Settings(
        tokenizer="mine", tokenizer_weights=str(folder), generator_weights=f"{folder}-generator", devices="cpu"
    )
    tokenizer, generator = load_models(mine, "cpu")
    assert generator is not None
    assert tokenizer.name == generator.name == "mine"
    with pytest.raises(UnknownVariantError, match="no generator is called 'other'"):
        load_models(Settings(tokenizer="titok-mini-32", generator="other"), "cpu")


def test_the_codebook_of_the_model_info_is_what_latents_are_compared_with() -> None:
    tokenizer = tiny_tokenizer()
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    info = pickle.loads(pickle.dumps(ModelDevice(tokenizer, None).info))  # noqa: S301  as to another process
    assert (info.codebook.shape, info.codebook.dtype) == ((64, 5), np.float32)
    latents = tokenizer.latents(images).numpy()
    distances = np.square(latents[:, :, None] - info.codebook).sum(-1)
    assert (distances.argmin(-1) == tokenizer.encode(images).numpy()).all()
