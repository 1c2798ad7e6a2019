"""TF32 in one pass and in three, as arithmetic that a CPU can follow; and the switches of a CUDA device."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.runtime.matmul_precision import _SWITCHES, MatmulPrecision, ThreePassLinear, _split


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_a_number_is_what_tf32_keeps_of_it_and_the_rest() -> None:
    x = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    high, low = _split(x)
    assert (high.view(torch.int32) & 0x1FFF == 0).all()  # 10 of 23 bits of mantissa
    assert torch.equal(high + low, x)
    assert (low.abs() <= x.abs() * 2**-11).all()
    assert _split(torch.zeros(3))[0].eq(0).all()


def test_three_passes_come_near_float32_where_one_does_not() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(64, 256), torch.randn(32, 256), torch.randn(32)
    exact = F.linear(x.double(), weight.double(), bias.double())
    one = F.linear(_split(x)[0], _split(weight)[0], bias)
    with ThreePassLinear():
        three = F.linear(x, weight, bias)
    assert relative_error(F.linear(x, weight, bias), exact) < 1e-6
    assert relative_error(three, exact) < 2e-6
    assert relative_error(one, exact) > 1e-4


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_a_network_run_in_three_passes_and_their_weights_are_split_once(*, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 24, bias=bias).requires_grad_(False), torch.randn(2, 5, 48)
    mode = ThreePassLinear()
    with mode:
        first, again = layer(x), layer(x)
        part = F.linear(x, layer.weight[:8])
    assert torch.equal(first, again)
    assert first.shape == (2, 5, 24)
    torch.testing.assert_close(first, layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part, F.linear(x, layer.weight[:8]), rtol=1e-5, atol=1e-5)
    assert len(mode._parts) == 2  # the weight, and the rows of it


def test_other_formats_and_what_comes_after_are_left_alone() -> None:
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    low = F.linear(x.bfloat16(), weight.bfloat16())
    with ThreePassLinear() as mode:
        assert torch.equal(F.linear(x.bfloat16(), weight.bfloat16()), low)
        assert mode._parts == {}
    plain = F.linear(x, weight)
    products = MatmulPrecision("tf32x3", torch.device("cpu"))
    for _ in range(2):  # a network is run more than once
        with products:
            pass
    assert torch.equal(F.linear(x, weight), plain)


def test_the_switches_of_a_device_are_as_they_were_when_the_work_is_done() -> None:
    before = _SWITCHES.get()
    cuda = torch.device("cuda")  # the switches exist without one
    try:
        for was in ({"matrices": False, "convolutions": True}, {"matrices": True, "convolutions": False}):
            outside = _SWITCHES.values(**was)
            _SWITCHES.set(outside)
            for mode, matrices, convolutions in (
                ("float32", False, False),
                ("tf32", True, True),
                ("tf32x3", True, False),
            ):
                with contextlib.suppress(ZeroDivisionError), MatmulPrecision(mode, cuda):  # type: ignore[arg-type]
                    assert _SWITCHES.get() == _SWITCHES.values(matrices=matrices, convolutions=convolutions)
                    raise ZeroDivisionError
                assert _SWITCHES.get() == outside
    finally:
        _SWITCHES.set(before)


def test_a_cpu_leaves_the_switches_of_cuda_devices_alone() -> None:
    before = _SWITCHES.get()
    with MatmulPrecision("tf32", torch.device("cpu")):
        assert _SWITCHES.get() == before
