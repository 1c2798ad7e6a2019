"""Chooses what computes a function of a network on a CPU: PyTorch, the reference, or OpenVINO where it is faster."""

import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from models.runtime.transfers import Compute

log = logging.getLogger(__name__)

RuntimeName: TypeAlias = Literal["auto", "torch", "openvino"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
_PROCESSORS = ("x86_64", "AMD64", "aarch64", "arm64")
_RUNS, _SECONDS = 5, 0.5


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """``name`` of the runtime, and the folder in which its graphs are kept between starts (None: they are not)."""

    name: str = "torch"
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in RUNTIMES:
            raise ValueError(f"runtime {self.name!r} is unknown; choose one of {', '.join(RUNTIMES)}")

    @classmethod
    def of(cls, name: str | None, cache_dir: Path | None = None) -> "Runtime":
        """The runtime of that name, by default that of the variables ``TITOK_RUNTIME`` and ``TITOK_CACHE_DIR``."""
        folder = cache_dir or os.environ.get("TITOK_CACHE_DIR")
        return cls(
            name=name or os.environ.get("TITOK_RUNTIME") or "auto", cache_dir=None if not folder else Path(folder)
        )

    def supports(self, device_type: str) -> bool:
        """Whether something else than PyTorch may compute on such a device."""
        return self.name != "torch" and device_type == "cpu" and platform.machine() in _PROCESSORS


TORCH = Runtime()


@dataclass(frozen=True)
class GraphSource:
    """What OpenVINO compiles: the module in float32, its input [2, ...], and the digest of its weights."""

    module: nn.Module
    example: Tensor
    digest: str
    is_bfloat16: bool = field(default=False, kw_only=True)


class SelectedFunction:
    """A function of a batch, computed by PyTorch until :meth:`select` finds that OpenVINO is faster.

    ``is_selected``: whether :meth:`select` was called.
    """

    def __init__(self, name: str, reference: Compute) -> None:
        self._name, self._reference = name, reference
        self._selected = reference
        self.is_selected = False

    @property
    def runtime(self) -> Literal["torch", "openvino"]:
        """What computes it."""
        return "torch" if self._selected is self._reference else "openvino"

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The results of the selected function."""
        return self._selected(inputs)

    def select(
        self,
        source: GraphSource,
        runtime: Runtime,
        *,
        threads: int,
        run: Callable[[], tuple[Tensor, ...]],
        is_same: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], bool],
    ) -> None:
        """Selects OpenVINO if ``run``, which calls this function, then gives the same results in less time.

        With the runtime ``openvino`` the time does not matter. Whatever fails leaves PyTorch selected, and is logged.
        """
        self.is_selected = True
        try:
            expected = run()
            compiled = _compile(self._name, source, runtime, threads)
            self._selected = compiled
            _check(is_same(run(), expected))
            gain = self._gain(compiled, run)
        except Exception as error:
            self._selected = self._reference
            log.warning("PyTorch computes the %s, not OpenVINO: %s", self._name, _reason(error))
            return
        self._selected = compiled if gain > 1.0 or runtime.name == "openvino" else self._reference
        log.info("%s computes the %s; OpenVINO has %.2f times PyTorch's rate", self.runtime, self._name, gain)

    def _gain(self, compiled: Compute, run: Callable[[], object]) -> float:
        """PyTorch's time over OpenVINO's, the shortest of a few runs in turn."""
        shortest = {"torch": float("inf"), "openvino": float("inf")}
        begun = time.perf_counter()
        for repeat in range(_RUNS):
            if repeat and time.perf_counter() - begun > _SECONDS:
                break
            for function in (self._reference, compiled):
                self._selected = function
                start = time.perf_counter()
                run()
                shortest[self.runtime] = min(shortest[self.runtime], time.perf_counter() - start)
        return shortest["torch"] / shortest["openvino"]


def _compile(name: str, source: GraphSource, runtime: Runtime, threads: int) -> Compute:
    # Imported here, because it is an extra, and PyTorch serves without it.
    from models.runtime.openvino_function import OpenVinoFunction, cached_graph, traced_graph

    if runtime.cache_dir is None:
        graph = traced_graph(source.module, source.example)
    else:
        graph = cached_graph(source.module, source.example, folder=runtime.cache_dir, name=name, digest=source.digest)
    return OpenVinoFunction(graph, is_bfloat16=source.is_bfloat16, threads=threads)


def _check(is_same: bool) -> None:
    if not is_same:
        raise ArithmeticError("its results are not PyTorch's")


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed (extra 'openvino')"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
