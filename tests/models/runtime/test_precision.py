"""Number formats of a dtype setting on each kind of device."""

from __future__ import annotations

import pytest
import torch

from models.runtime.matmul_precision import has_tf32
from models.runtime.precision import DTYPES, FORMATS, Precision, has_fast_bfloat16
from tests.tiny_models import tiny_generator, tiny_tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The compute capability of a simulated CUDA device."""
    capabilities = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capabilities[-1])
    return capabilities


def test_auto_lowers_only_the_decoder_and_only_where_that_is_faster(capability: list[tuple[int, int]]) -> None:
    precision = Precision.of("auto", CUDA)
    assert (precision.encoder.name, precision.decoder.name, precision.generator.name) == (
        "float32",
        "bfloat16",
        "float32",
    )
    capability.append((7, 5))
    assert Precision.of("auto", CUDA).decoder.name == "float32"
    on_cpu = Precision.of("auto", CPU)
    assert on_cpu.encoder.is_exact
    assert (on_cpu.decoder.name == "bfloat16") is has_fast_bfloat16(CPU)


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "auto"])
def test_other_names_are_one_format_for_all_networks(name: str, capability: list[tuple[int, int]]) -> None:
    precision = Precision.of(name, CUDA)
    assert precision.encoder is precision.decoder is precision.generator is FORMATS[name]
    assert precision.encoder.is_exact is (name == "float32")


def test_revision_suffixes_are_unique_and_empty_for_float32() -> None:
    suffixes = [kind.suffix for kind in FORMATS.values()]
    assert suffixes[0] == ""
    assert len(set(suffixes)) == len(suffixes)


def test_tf32_needs_a_device_that_supports_it(capability: list[tuple[int, int]]) -> None:
    assert has_tf32(CUDA)
    capability.append((7, 5))
    for name in ("tf32", "tf32x3"):
        for device in (CPU, CUDA):
            assert not has_tf32(device)
            with pytest.raises(ValueError, match=r"8\.0 or later"):
                Precision.of(name, device)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_has_a_revision_suffix(name: str) -> None:
    exact, low = tiny_tokenizer(), tiny_tokenizer(dtype=name)
    assert low.revision == exact.revision + FORMATS[name].suffix
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    assert (low.encode(images) == exact.encode(images)).float().mean() > 0.8
    generator = tiny_generator(dtype=name)
    assert generator.revision.endswith(FORMATS[name].suffix)
    assert generator.generate([1], seeds=[1]).shape == (1, 16)
