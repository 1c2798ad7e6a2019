"""The fake device finds every access that a real one would make too early, too late, or from the wrong memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.runtime.cuda_graphs import CudaRecorder, GraphedFunction
from models.runtime.matmul_precision import MatmulMode, MatmulPrecision
from models.runtime.transfers import CudaTransfers, pin
from tests.fake_cuda import CUDA, FakeCuda, Race
from tests.gpu import unrecordable


def copy_to_host(source: torch.Tensor) -> torch.Tensor:
    return torch.empty(source.shape, pin_memory=True).copy_(source, non_blocking=True)


def read_before_its_event() -> None:
    copy_to_host(torch.ones(4, device="cuda")).sum()


def read_on_another_stream() -> None:
    made = torch.ones(4, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        made.sum()


def reused_in_flight() -> None:
    made, side = torch.ones(4, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        made.sum()
    made.zero_()


def released_in_flight() -> None:
    made, side = torch.ones(4, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        made.sum()
    del made
    torch.ones(1)


def pinned_memory_overwritten() -> None:
    pinned = torch.ones(4).pin_memory()
    pinned.to("cuda", non_blocking=True)
    pinned.numpy()[0] = 7.0  # not an operator
    torch.cuda.synchronize()


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (read_before_its_event, "reads pinned memory that stream 0 may still be using"),
        (read_on_another_stream, "reads device memory that stream 0"),
        (reused_in_flight, "writes device memory that stream 1"),
        (released_in_flight, "memory of stream 0 was released while stream 1 used it"),
        (pinned_memory_overwritten, "pinned memory was written while the device was reading it"),
    ],
)
def test_a_race_is_found(access: Callable[[], None], message: str, cuda: FakeCuda) -> None:
    with pytest.raises(Race, match=message):
        access()
    cuda.errors.clear()  # of the memory that was in use then


def test_the_same_accesses_in_order_are_no_race(cuda: FakeCuda) -> None:
    made, side = torch.ones(4, device="cuda"), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        copy = copy_to_host(made)
        done = torch.cuda.Event()
        done.record()
    torch.cuda.current_stream().wait_event(done)
    made.zero_()
    done.synchronize()
    assert copy.tolist() == [1.0] * 4
    assert made.tolist() == [0.0] * 4


def test_shared_memory_holds_nonsense_until_a_copy_has_arrived(cuda: FakeCuda) -> None:
    shared = np.zeros((2, 3), np.float32)
    pin(shared, CUDA)
    arriving = CudaTransfers(CUDA).run(torch.ones(2, 3), lambda batch: (batch + 1,), torch.from_numpy(shared))
    assert (shared != 2.0).all()
    arriving()
    assert (shared == 2.0).all()


def test_a_graph_replays_on_its_own_memory(cuda: FakeCuda) -> None:
    function = GraphedFunction(lambda rows: (rows * 2,), example=lambda size: torch.zeros(size, 2, device=CUDA))
    function.record([2], CudaRecorder(CUDA))
    graph = function._graphs[2,]
    with pytest.raises(RuntimeError, match="size"):
        graph.inputs.copy_(torch.ones(3, 2, device=CUDA))
    assert function(torch.ones(2, 2, device=CUDA))[0].tolist() == [[2.0] * 2] * 2
    torch.ones(1, 2, device=CUDA).copy_(graph.inputs[:1])
    graph.recording.replay()
    assert graph.recording.outputs[0].tolist() == [[2.0] * 2] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda device, host: device + host,
        lambda device, host: host.add_(device),
        lambda device, host: torch.cat([device, host]),
        lambda device, _: device.numpy(),
    ],
)
def test_tensors_of_two_devices_are_refused(wrong: Callable[..., object], cuda: FakeCuda) -> None:
    with pytest.raises((RuntimeError, TypeError), match="device"):
        wrong(torch.ones(4, device="cuda"), torch.ones(4))


def test_memory_ends(cuda: FakeCuda) -> None:
    torch.cuda.set_per_process_memory_fraction(1000 / cuda.total)
    kept = torch.ones(200, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.ones(200, device="cuda")
    del kept
    torch.ones(200, device="cuda")


@pytest.mark.parametrize("name", ["cuda:1", "cpu"])
def test_a_device_that_is_not_there_is_refused(name: str, cuda: FakeCuda) -> None:
    with pytest.raises((RuntimeError, ValueError), match="device"):
        torch.cuda.set_device(torch.device(name))


def test_a_batch_that_fails_is_not_read_any_more_when_its_memory_is_released(cuda: FakeCuda) -> None:
    def fail(batch: torch.Tensor) -> tuple[torch.Tensor]:
        batch.sum()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        CudaTransfers(CUDA).run(torch.ones(4).pin_memory(), fail)
    torch.ones(4, device=CUDA)


def test_memory_that_cannot_be_pinned_is_an_error(cuda: FakeCuda) -> None:
    memory = np.zeros((4, 4))
    unpin = pin(memory, CUDA)
    with pytest.raises(RuntimeError, match="128 bytes cannot be pinned: CUDA error 712"):
        pin(memory, CUDA)
    unpin()
    with pytest.raises(ValueError, match="only a contiguous array"):
        pin(memory.T[:2], CUDA)


def test_a_function_that_cannot_be_recorded_is_called_instead(
    cuda: FakeCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    unrecordable.main()
    assert capsys.readouterr().out == "not recorded\n"


def test_products_have_the_precision_of_tf32_where_they_may(cuda: FakeCuda) -> None:
    x, weight = torch.randn(2, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = x @ weight.T

    def error(mode: MatmulMode) -> float:
        with MatmulPrecision(mode, CUDA):
            found = F.linear(x.float().to(CUDA), weight.float().to(CUDA))
        return float((found.cpu() - exact).norm() / exact.norm())

    assert error("float32") < 1e-6
    assert 1e-4 < error("tf32") < 1e-3
    assert error("tf32x3") < 2e-6
