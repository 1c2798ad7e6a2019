"""``ModelDevice``: the encoder's runtime is selected in a thread beside the first batches."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch

from models.runtime.selection import GraphSource, Runtime
from models.runtime.transfers import Compute
from service.inference.device import ModelDevice
from tests.tiny_models import tiny_tokenizer

# More than the 32 images after which a tokenizer selects by itself.
IMAGES = np.random.default_rng(40).integers(0, 256, (40, 32, 32, 3), np.uint8)


class Compiler:
    """Stands in for OpenVINO's: the module itself. The encoder's compilation waits for ``go_on``, and may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.compiled: list[str] = []
        self.go_on = threading.Event()
        self._error = error

    def __call__(self, name: str, source: GraphSource, *_: object) -> Compute:
        self.compiled.append(name)
        if name == "encoder":
            assert self.go_on.wait(60)
            if self._error is not None:
                raise self._error

        def compute(inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            results = source.module(inputs)
            return results if isinstance(results, tuple) else (results,)

        return compute


def wait_for_selection() -> None:
    [thread] = [thread for thread in threading.enumerate() if thread.name == "runtime selection"]
    thread.join(60)


@pytest.mark.parametrize(
    ("error", "runtime", "line"),
    [
        (None, "openvino", "openvino computes the encoder"),
        (RuntimeError("no such instruction"), "torch", "PyTorch computes the encoder"),
    ],
)
def test_pytorch_encodes_until_the_encoders_runtime_is_selected(
    error: Exception | None,
    runtime: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    compiler = Compiler(error)
    monkeypatch.setattr("models.runtime.selection._compile", compiler)
    device = ModelDevice(tiny_tokenizer(runtime=Runtime(name="openvino")), None, max_batch_size=4)
    device.warm_up(selects_encoder_in_background=True)
    expected = ModelDevice(tiny_tokenizer(), None).encode(IMAGES)
    assert device.status()["runtimes"] == {"encoder": "selecting", "decoder": "openvino"}
    assert (device.encode(IMAGES) == expected).all()
    compiler.go_on.set()
    wait_for_selection()
    assert device.status()["runtimes"] == {"encoder": runtime, "decoder": "openvino"}
    assert compiler.compiled == ["decoder", "encoder"]
    assert line in caplog.text
    assert (device.encode(IMAGES) == expected).all()


def test_a_failure_of_the_selection_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError("no memory for the measurement")

    monkeypatch.setattr("models.runtime.selection._compile", compiler := Compiler())
    device = ModelDevice(tiny_tokenizer(runtime=Runtime(name="openvino")), None, max_batch_size=4)
    monkeypatch.setattr("models.tokenizer.calibrate", out_of_memory)
    device.warm_up(selects_encoder_in_background=True)
    compiler.go_on.set()
    wait_for_selection()
    assert device.status()["runtimes"]["encoder"] == "torch"  # type: ignore[index]
    assert "PyTorch encodes, because the selection of a runtime failed" in caplog.text
    assert "no memory for the measurement" in caplog.text
