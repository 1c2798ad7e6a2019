"""OpenVINO computes the same ids as PyTorch; whatever is wrong with it, PyTorch serves and one line says why."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import Tokenizer, load_tokenizer
from models.networks import tokenizer_functions
from models.networks.tokenizer_functions import is_as_close
from models.runtime import selection
from models.runtime.cpu_threads import torch_threads
from models.runtime.selection import Runtime, SelectedFunction
from tests.tiny_models import tiny_tokenizer

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))


def on_openvino(cache_dir: Path | None = None, dtype: str = "float32") -> Tokenizer:
    tokenizer = tiny_tokenizer(dtype=dtype, runtime=Runtime(name="openvino", cache_dir=cache_dir))
    tokenizer.select_runtime(1)
    return tokenizer


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    tokenizer = load_tokenizer("titok-mini-32", runtime="openvino")
    with torch_threads(2):
        tokenizer.tune()
    return tokenizer


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    return load_tokenizer("titok-mini-32", runtime="torch")


@pytest.fixture(scope="module")
def images(photographs: list[Image.Image]) -> torch.Tensor:
    """Crops of photographs, and squares of random colors."""
    crops = [picture.convert("RGB").resize((128 * n, 128 * n)) for picture in photographs for n in (1, 2)]
    tiles = [
        np.asarray(crop)[y : y + 128, x : x + 128]
        for crop in crops
        for y in range(0, crop.height, 128)
        for x in range(0, crop.width, 128)
    ]
    coarse = np.random.default_rng(5).integers(0, 256, (20, 16, 16, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return torch.from_numpy(np.concatenate([np.stack(tiles), coarse]))


def test_ids_are_pytorchs_in_batches_alone_and_in_threads(
    shipped: Tokenizer, reference: Tokenizer, images: torch.Tensor
) -> None:
    expected = reference.encode(images)
    assert shipped.runtimes == {"encoder": "openvino", "decoder": "openvino"}
    assert torch.equal(shipped.encode(images), expected)
    assert torch.equal(torch.cat([shipped.encode(image[None]) for image in images[:5]]), expected[:5])
    found: dict[int, torch.Tensor] = {}

    def encode(first: int) -> None:
        torch.set_num_threads(1)
        found[first] = shipped.encode(images[first : first + 10])

    threads = [threading.Thread(target=encode, args=(first,)) for first in (0, 10, 20)]
    with torch_threads(torch.get_num_threads()):  # what a thread sets applies to threads that start later
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(ids, expected[first : first + 10]) for first, ids in found.items())


def test_pixels_are_pytorchs(shipped: Tokenizer, reference: Tokenizer, images: torch.Tensor) -> None:
    ids = reference.encode(images[:7])
    difference = (shipped.decode(ids).short() - reference.decode(ids)).abs()
    assert int(difference.max()) <= 1
    assert shipped.revision == reference.revision


def test_openvino_reports_its_use_to_nobody() -> None:
    assert on_openvino().runtimes["encoder"] == "openvino"
    assert sys.modules["openvino_telemetry"] is None  # its import fails, and OpenVINO goes on without


def test_a_bfloat16_decoder_stays_one() -> None:
    ids = tiny_tokenizer().encode(IMAGES)
    tokenizer = on_openvino(dtype="auto")
    assert tokenizer.runtimes["decoder"] == "openvino"
    difference = (tokenizer.decode(ids).short() - tiny_tokenizer(dtype="auto").decode(ids)).abs()
    assert int(difference.max()) <= 8


def test_a_bfloat16_decoder_may_deviate_as_much_as_pytorchs_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tokenizer_functions._LARGEST_DIFFERENCE, torch.bfloat16, -1)  # no network is within it
    assert on_openvino(dtype="auto").runtimes["decoder"] == "openvino"
    exact, expected = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8), torch.full((1, 4, 4, 3), 103, dtype=torch.uint8)
    assert is_as_close(torch.full_like(exact, 94), expected, exact)
    assert not is_as_close(torch.full_like(exact, 107), expected, exact)


def test_prefixes_are_decoded_by_pytorch() -> None:
    tokenizer = tiny_tokenizer(min_tokens=1, runtime=Runtime(name="openvino"))
    tokenizer.select_runtime(1)
    ids = tokenizer.encode(IMAGES)
    assert torch.equal(tokenizer.decode(ids[:, :5]), tiny_tokenizer(min_tokens=1).decode(ids[:, :5]))


def test_close_decisions_are_repeated_by_pytorch() -> None:
    tokenizer, batches = on_openvino(), []
    encode = tokenizer.encoder._function
    tokenizer.encoder._function = lambda inputs, exact: (batches.append((len(inputs), exact)), encode(inputs, exact))[1]
    with torch_threads(1):
        tokenizer.tolerance = 1e9
        assert torch.equal(tokenizer.encode(IMAGES[:1]), tiny_tokenizer().encode(IMAGES[:1]))
        tokenizer.tolerance = 0.0
        tokenizer.encode(IMAGES)
    assert batches == [(1, 0), (1, 1), (3, 0)]


def test_the_deviation_is_measured_on_a_busy_machine_too() -> None:
    tokenizer = on_openvino()
    unmeasured = tokenizer.tolerance
    tokenizer.calibrate(IMAGES, [2, 3], seconds=-1.0)
    assert tokenizer.tolerance < unmeasured
    assert torch.equal(tokenizer.encode(IMAGES), tiny_tokenizer().encode(IMAGES))


def test_a_graph_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = on_openvino(tmp_path / "cache").encode(IMAGES)
    monkeypatch.setattr("models.runtime.openvino_function.traced_graph", None)
    again = on_openvino(tmp_path / "cache")
    assert again.runtimes == {"encoder": "openvino", "decoder": "openvino"}
    assert torch.equal(again.encode(IMAGES), ids)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # nothing unfinished


def no_package(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "models.runtime.openvino_function", raising=False)


def broken_compiler(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def compile_model(*_: object) -> None:
        raise RuntimeError("Exception from core.cpp:\nno such instruction")

    monkeypatch.setattr("openvino.Core.compile_model", compile_model)


def wrong_results(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(
        selection, "_compile", lambda *_: lambda inputs: (torch.zeros(len(inputs), 16), torch.zeros(len(inputs), 16))
    )


def unwritable_cache(_: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("a file")


def graph_of_other_weights(_: pytest.MonkeyPatch, cache: Path) -> None:
    on_openvino(cache)
    for path in cache.iterdir():
        text = (path / "graph.xml").read_text()
        (path / "graph.xml").write_text(text.replace("0" * 64, "1" * 64))


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (no_package, "the package openvino is not installed"),
        (broken_compiler, "RuntimeError: no such instruction"),
        (wrong_results, "ArithmeticError: its results are not PyTorch's"),
        (unwritable_cache, "FileExistsError: .*cache"),
        (graph_of_other_weights, "is not the graph of the weights 000000000000"),
    ],
)
def test_pytorch_serves_and_a_line_says_why(
    break_it: Callable[[pytest.MonkeyPatch, Path], None],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    break_it(monkeypatch, tmp_path / "cache")
    caplog.clear()
    tokenizer = on_openvino(tmp_path / "cache")
    assert tokenizer.runtimes == {"encoder": "torch", "decoder": "torch"}
    assert torch.equal(tokenizer.encode(IMAGES), tiny_tokenizer().encode(IMAGES))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("PyTorch computes the ")
    assert re.search(reason, lines[0])


@pytest.mark.parametrize(
    ("name", "gain", "expected"), [("auto", 0.9, "torch"), ("auto", 1.1, "openvino"), ("openvino", 0.9, "openvino")]
)
def test_auto_selects_the_faster_one(name: str, gain: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SelectedFunction, "_gain", lambda *_: gain)
    tokenizer = tiny_tokenizer(runtime=Runtime(name=name))
    tokenizer.select_runtime(1)
    assert tokenizer.runtimes == {"encoder": expected, "decoder": expected}


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, "openvino"), (3.0, "torch")])
def test_the_shortest_of_a_few_runs_in_turn_decides(
    seconds: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, runs = [0.0], []

    def taking(name: str, seconds: float) -> Callable[[torch.Tensor], tuple[torch.Tensor]]:
        def compute(inputs: torch.Tensor) -> tuple[torch.Tensor]:
            now[0] += seconds + 0.01 * len(runs)  # a machine that becomes slower
            runs.append(name)
            return (inputs,)

        return compute

    monkeypatch.setattr(selection.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(selection, "_SECONDS", 7.0)
    monkeypatch.setattr(selection, "_compile", lambda *_: taking("openvino", seconds))
    function = SelectedFunction("encoder", taking("torch", 2.0))
    source = selection.GraphSource(torch.nn.Identity(), IMAGES, "0")
    function.select(
        source,
        Runtime(name="auto"),
        threads=1,
        run=lambda: function(IMAGES),
        is_same=lambda found, reference: found is not reference,
    )
    assert function.runtime == expected
    assert runs[:6] == ["torch", "openvino", "torch", "openvino", "torch", "openvino"]
    assert len(runs) < 10  # the time is limited


def test_a_runtime_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITOK_RUNTIME", "openvino")
    monkeypatch.setenv("TITOK_CACHE_DIR", "/var/cache/titok")
    assert Runtime.of(None) == Runtime(name="openvino", cache_dir=Path("/var/cache/titok"))
    monkeypatch.delenv("TITOK_RUNTIME")
    assert Runtime.of(None).name == "auto"
    with pytest.raises(ValueError, match="runtime 'onnx' is unknown; choose one of auto, torch, openvino"):
        Runtime.of("onnx")
    assert not Runtime(name="openvino").supports("cuda")


def test_the_tolerance_is_measured_after_some_images() -> None:
    tokenizer = tiny_tokenizer()
    default = tokenizer.tolerance
    with torch_threads(1):
        for _ in range(10):
            tokenizer.encode(IMAGES)
        assert tokenizer.tolerance == default
        tokenizer.encode(IMAGES)
    assert tokenizer.tolerance < default
