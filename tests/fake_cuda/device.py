"""The fake device: which tensors are on it, what a transfer does, and the functions of ``torch.cuda``.

Tensors are computed at once, but what is asynchronous is so for the test: memory of the host that a device writes holds
nonsense until the host has waited, and memory that it reads must be the same then as at the start. A process has one device
of ``memory`` bytes. The modes belong to the thread that enters them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._pytree import tree_leaves

from tests.fake_cuda.graphs import Graph, run_graph_context
from tests.fake_cuda.modes import CUDA, DispatchMode, FunctionMode
from tests.fake_cuda.order import Event, Host, Memory, Pending, Race, Stream, check

FAKE_NAME = "fake device"
_NONSENSE = 0xA5
# Operators whose result has to be read by the host.
_WAITING = (
    "_local_scalar_dense",
    "item",  # as it is called in inference mode
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "is_nonzero",
    "bincount",
)


# Operators that use TF32 if they may, and where their two factors are among the arguments.
_PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}


class FakeCuda:
    """A context manager: within it ``torch.cuda`` has one device.

    Raises ``Race`` at the access, or at the end, for the memory that was released too early.
    """

    def __init__(self, *, memory: int = 1 << 40, capability: tuple[int, int] = (9, 0)) -> None:
        self.host = Host()
        self.total, self.limit, self.used = memory, memory, 0
        self.capability = capability
        self.graph: Graph | None = None  # being recorded
        self.errors: list[Race] = []
        self._memory: dict[int, Memory] = {}  # by the address of a storage's implementation
        self._registered: dict[int, int] = {}  # ranges of pinned memory
        self._streams = 0
        self._creating = False
        self._is_off = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in self._functions().items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_setDevice", self._set_device, raising=False)
        patch.setattr(clip_grad, "_group_tensors_by_device_and_dtype", self._grouped)
        self._stack.enter_context(DispatchMode(self))
        self._stack.enter_context(FunctionMode(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if error[0] is None:
            self.raise_errors()

    def raise_errors(self) -> None:
        """Raises what was found where nothing can be raised."""
        if self.errors:
            raise self.errors.pop()

    # --- torch.cuda --------------------------------------------------------------------------------------------------

    def _functions(self) -> dict[str, Any]:
        host = self.host
        properties = SimpleNamespace(total_memory=self.total, name=FAKE_NAME, uuid="0", multi_processor_count=1)

        class Streams(Stream):
            def __init__(fake, device: Any = None, **_: Any) -> None:  # noqa: N805
                index_of(device)
                self._streams += 1
                super().__init__(host, self._streams)

        class Events(Event):
            def __init__(fake, **_: Any) -> None:  # noqa: N805
                super().__init__(host)

        class Graphs(Graph):
            def __init__(fake) -> None:  # noqa: N805
                super().__init__(self)

        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "is_bf16_supported": lambda **_: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_capability": lambda device=None: index_of(device, self.capability),
            "get_device_properties": lambda device=None: index_of(device, properties),
            "get_device_name": lambda device=None: index_of(device, FAKE_NAME),
            "mem_get_info": lambda device=None: index_of(device, (self.total - self.used, self.total)),
            "memory_allocated": lambda device=None: index_of(device, self.used),
            "memory_reserved": lambda device=None: index_of(device, self.used),
            "max_memory_allocated": lambda device=None: index_of(device, self.used),
            "set_per_process_memory_fraction": self._set_memory_fraction,
            "empty_cache": lambda: None,
            "manual_seed_all": lambda _: None,
            "set_sync_debug_mode": lambda _: None,
            "_exchange_device": lambda _: 0,
            "_maybe_exchange_device": lambda _: 0,
            "Stream": Streams,
            "Event": Events,
            "CUDAGraph": Graphs,
            "graph": lambda graph, **options: run_graph_context(self, graph, **options),
            "graph_pool_handle": lambda: (0, 0),
            "current_stream": lambda device=None: index_of(device, host.current),
            "stream": self.using,
            "synchronize": lambda device=None: index_of(device, self._wait_for_all()),
            "cudart": lambda: SimpleNamespace(cudaHostRegister=self._register, cudaHostUnregister=self._unregister),
        }

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Operators are the fake's own, not those of the code under test."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    @contextlib.contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """Makes a stream the current one."""
        before, self.host.current = self.host.current, stream
        try:
            yield
        finally:
            self.host.current = before

    def _set_device(self, index: int) -> None:
        if index != 0:
            raise RuntimeError("CUDA error: invalid device ordinal")

    def _set_memory_fraction(self, fraction: float, device: Any = None) -> None:
        index_of(device)
        self.limit = int(fraction * self.total)

    def _grouped(self, lists: Any, *more: Any) -> dict[Any, Any]:
        """As PyTorch's function, which groups in C++, where all tensors are on the CPU."""
        groups = _group_tensors_by_device_and_dtype(lists, *more)
        on_device = self.on_device(lists[0][0])
        return {(CUDA if on_device else device, dtype): group for (device, dtype), group in groups.items()}

    def _wait_for_all(self) -> None:
        self.host.wait(dict.fromkeys(range(self._streams + 1), 1 << 60))

    def _register(self, address: int, num_bytes: int, _flags: int) -> int:
        if address in self._registered:
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        self._registered[address] = num_bytes
        return 0

    def _unregister(self, address: int) -> int:
        del self._registered[address]
        return 0

    # --- memory ------------------------------------------------------------------------------------------------------

    def memory_of(self, tensor: Tensor) -> Memory | None:
        """None: ordinary memory of the host."""
        return self._memory.get(tensor.untyped_storage()._cdata)

    def on_device(self, tensor: Any) -> bool:
        """Whether a tensor is on the device."""
        memory = self.memory_of(tensor) if isinstance(tensor, Tensor) else None
        return memory is not None and memory.kind == "device"

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is page-locked."""
        memory, address = self.memory_of(tensor), tensor.data_ptr()
        if memory is None and any(start <= address < start + size for start, size in self._registered.items()):
            memory = self._track(tensor, "pinned")
        return memory is not None and memory.kind == "pinned"

    def _track(self, tensor: Tensor, kind: Any) -> Memory:
        storage = tensor.untyped_storage()
        pool = None if self.graph is not None else self.host.current.number
        memory = Memory(kind, pool, storage.nbytes())
        if kind == "device":
            if self.used + memory.num_bytes > self.limit:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {memory.num_bytes} bytes")
            self.used += memory.num_bytes
        self._memory[storage._cdata] = memory
        weakref.finalize(storage, self._released, storage._cdata).atexit = False
        return memory

    def _released(self, address: int) -> None:
        memory = self._memory.pop(address)
        if memory.kind == "pinned":
            return  # the pinned allocator of PyTorch waits itself; registered memory is checked by its contents
        self.used -= memory.num_bytes
        if memory.stream is None:
            return
        known = self.host.clock if memory.stream != self.host.current.number else self.host.current.clock
        used = [*memory.read.items(), *([memory.written] if memory.written else [])]
        for stream, time in used:
            if stream != memory.stream and max(known.get(stream, 0), self.host.clock.get(stream, 0)) < time:
                self.errors.append(Race(f"memory of stream {memory.stream} was released while stream {stream} used it"))

    # --- operators ---------------------------------------------------------------------------------------------------

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator on the host or on the current stream."""
        if self._is_off:
            return func(*args, **kwargs)
        self.raise_errors()
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_device = self._creating or any(map(self.on_device, inputs))
        written = _written(func, args, kwargs)
        if not is_device:
            for tensor in inputs:
                if (memory := self.memory_of(tensor)) is not None:
                    check(self.host.clock, memory, func, writes=any(tensor is each for each in written))
            return func(*args, **kwargs)
        for tensor in inputs:
            if tensor.dim() and not self.on_device(tensor):
                raise RuntimeError(f"Expected all tensors to be on the same device: {func} got one of the host")
        name = func.__name__.partition(".")[0]
        function = partial(_with_tf32, func, _PRODUCTS[name]) if name in _PRODUCTS and _may_use_tf32() else func
        if name in _WAITING:
            if self.graph is not None:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            self.access([each for each in inputs if self.on_device(each)], [], func)
            self.host.current.synchronize()
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        new = [each for each in outputs if self.memory_of(each) is None]
        for tensor in new:
            if self.memory_of(tensor) is None:  # two outputs may share memory
                self._track(tensor, "device")
        if self.graph is None:
            self.access([each for each in inputs if self.on_device(each)], [*new, *written], func)
        else:  # nothing runs
            self.graph.record(function, args, kwargs, outputs, new)
        return result

    def access(self, read: list[Tensor], written: list[Tensor], name: Any) -> int:
        """An operation of the current stream; returns its time."""
        stream = self.host.current
        time = stream.tick()
        for tensors, writes in ((read, False), (written, True)):
            for tensor in tensors:
                memory = self.memory_of(tensor)
                if memory is None:
                    continue
                check(stream.clock, memory, name, writes=writes)
                if writes:
                    memory.written = (stream.number, time)
                else:
                    memory.read[stream.number] = time
        return time

    def create(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """A factory with a CUDA device."""
        if func in (torch.tensor, torch.as_tensor):
            return self.move(func(*args, **{**kwargs, "device": "cpu"}), to_device=True, non_blocking=False)
        self._creating = True
        try:
            with DispatchMode(self):
                return func(*args, **{**kwargs, "device": "cpu"})
        finally:
            self._creating = False

    def pinned(self, tensor: Tensor) -> Tensor:
        """Marks memory of the host as page-locked."""
        if self.memory_of(tensor) is None and tensor.numel():
            self._track(tensor, "pinned")
        return tensor

    def move(self, tensor: Tensor, *, to_device: bool, non_blocking: bool) -> Tensor:
        """A copy in the other memory."""
        with self.off():
            target = torch.empty_like(tensor, requires_grad=False)
        if to_device:
            self._track(target, "device")
        self.transfer(target, tensor, non_blocking=non_blocking)
        return target.requires_grad_(tensor.requires_grad) if tensor.is_leaf and tensor.requires_grad else target

    @torch.no_grad()
    def transfer(self, target: Tensor, source: Tensor, *, non_blocking: bool) -> None:
        """Copies between host and device, on the current stream."""
        to_device = self.on_device(target)
        host = source if to_device else target
        asynchronous = non_blocking and self.is_pinned(host)
        if self.graph is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        time = self.access([source], [target], "a copy")
        number = self.host.current.number
        if not asynchronous:
            self.host.current.synchronize()
        with self.off():
            if not asynchronous or to_device:
                target.copy_(source)
            if asynchronous:
                copy = source.detach().clone()
                self.host.pending.append(Pending(number, time, lambda: self._complete(host, copy, is_read=to_device)))
                if not to_device:
                    target.view(torch.uint8).fill_(_NONSENSE)

    def _complete(self, host: Tensor, copy: Tensor, *, is_read: bool) -> None:
        """The host has waited for a transfer of ``copy`` from (``is_read``) or to its memory."""
        with self.off(), torch.inference_mode():
            if not is_read:
                host.copy_(copy)
            elif not torch.equal(host, copy):
                raise Race("pinned memory was written while the device was reading it")


def index_of(device: Any, result: Any = None) -> Any:
    """``result``, after PyTorch's check of a device argument."""
    torch.cuda._utils._get_device_index(device, optional=True)
    return result


def _may_use_tf32() -> bool:
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def _with_tf32(func: Any, first: int, *args: Any, **kwargs: Any) -> Any:
    """A product of two float32 factors, argument ``first`` and the next, of which TF32 keeps 10 bits of mantissa."""
    factors = [
        ((each.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) if each.dtype is torch.float32 else each
        for each in args[first : first + 2]
    ]
    return func(*args[:first], *factors, *args[first + 2 :], **kwargs)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operator writes to, by its schema."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return written
