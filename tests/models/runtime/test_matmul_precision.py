"""TF32 arithmetic in one pass and in three, on a CPU, and PyTorch's precision switches."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.runtime.matmul_precision import MatmulPrecision, ThreePassLinear, _split, fp32_precision, set_fp32_precision


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_a_number_is_split_into_its_tf32_part_and_an_exact_remainder() -> None:
    x = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    high, low = _split(x)
    assert (high.view(torch.int32) & 0x1FFF == 0).all()  # 10 of 23 bits of mantissa
    assert torch.equal(high + low, x)
    assert (low.abs() <= x.abs() * 2**-11).all()
    assert _split(torch.zeros(3))[0].eq(0).all()


def test_three_passes_have_an_error_near_float32() -> None:
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
def test_linear_layers_run_in_three_passes_and_weights_are_split_once(*, bias: bool) -> None:
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


def test_other_dtypes_and_later_computations_are_unchanged() -> None:
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    low = F.linear(x.bfloat16(), weight.bfloat16())
    with ThreePassLinear() as mode:
        assert torch.equal(F.linear(x.bfloat16(), weight.bfloat16()), low)
        assert mode._parts == {}
    plain = F.linear(x, weight)
    precision = MatmulPrecision("tf32x3", torch.device("cpu"))
    for _ in range(2):  # a network is run more than once
        with precision:
            pass
    assert torch.equal(F.linear(x, weight), plain)


def test_the_switches_are_restored_on_exit() -> None:
    before = fp32_precision()
    cuda = torch.device("cuda")  # the switches exist without one
    try:
        for outside in (("ieee", "tf32"), ("tf32", "ieee")):
            set_fp32_precision(outside)
            for mode, inside in (
                ("float32", ("ieee", "ieee")),
                ("tf32", ("tf32", "tf32")),
                ("tf32x3", ("tf32", "ieee")),
            ):
                with contextlib.suppress(ZeroDivisionError), MatmulPrecision(mode, cuda):  # type: ignore[arg-type]
                    assert fp32_precision() == inside
                    raise ZeroDivisionError
                assert fp32_precision() == outside
    finally:
        set_fp32_precision(before)


def test_a_cpu_does_not_change_the_switches() -> None:
    before = fp32_precision()
    with MatmulPrecision("tf32", torch.device("cpu")):
        assert fp32_precision() == before
