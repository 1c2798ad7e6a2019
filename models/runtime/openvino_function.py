"""Compiles a PyTorch module with OpenVINO for the CPU.

::

    module ── trace ──> graph ── compile ──┬─> one stream of all threads    one image, or a caller with several threads
                          │                └─> a stream for each thread     threads that run batches of their own
                          └─> cache folder, by the digest of the weights

The graph comes from OpenVINO's PyTorch frontend itself, which takes a third of the time of ``openvino.convert_model``.
"""

import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Without this module, ``import openvino`` does not report its use to a server of its publisher.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402

_DIGEST = ["titok", "digest"]
_ELEMENTS = {torch.uint8: openvino.Type.u8, torch.int64: openvino.Type.i64, torch.float32: openvino.Type.f32}


class OpenVinoFunction:
    """A function of a batch [B, ...] that returns tensors [B, ...]. May be called by several threads at once."""

    def __init__(self, graph: openvino.Model, *, is_bfloat16: bool, threads: int) -> None:
        def compile_for(streams: int) -> openvino.CompiledModel:
            options = {
                "INFERENCE_PRECISION_HINT": "bf16" if is_bfloat16 else "f32",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,  # other processes share the cores
            }
            return core.compile_model(graph, "CPU", options)

        core = openvino.Core()
        streams = sorted({1, threads})
        with ThreadPoolExecutor(len(streams)) as pool:
            compiled = list(pool.map(compile_for, streams))
        self._latency, self._throughput = compiled[0], compiled[-1]
        self._local = threading.local()

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes on as many threads as PyTorch uses in the calling thread: one, or all."""
        kind = "throughput" if torch.get_num_threads() == 1 else "latency"
        request = getattr(self._local, kind, None)
        if request is None:
            request = getattr(self, f"_{kind}").create_infer_request()
            setattr(self._local, kind, request)
        # Not inputs.contiguous(): after a copy the threads of PyTorch's OpenMP spin on the cores that OpenVINO needs.
        array = np.ascontiguousarray(inputs.numpy())
        results = request.infer([array], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(result.copy()) for result in results.values())


def traced_graph(module: nn.Module, example: Tensor) -> openvino.Model:
    """The graph of a module in float32, with a dynamic batch. ``example`` [2, ...] is its input."""

    def function(inputs: Tensor) -> object:  # traced in half the time of the module
        return module(inputs)

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that are constant here
        traced = torch.jit.trace(function, (example,), check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced, example_input=(example,))
        frontend = FrontEndManager().load_by_framework("pytorch")
        graph: openvino.Model = frontend.convert(frontend.load(decoder))
    node = graph.inputs[0].get_node()
    node.set_partial_shape(openvino.PartialShape([-1, *example.shape[1:]]))
    node.set_element_type(_ELEMENTS[example.dtype])
    graph.validate_nodes_and_infer_types()
    return graph


def cached_graph(module: nn.Module, example: Tensor, *, folder: Path, name: str, digest: str) -> openvino.Model:
    """The graph from the cache ``folder``, where it is written first if it is not there.

    ``digest`` is that of the weights: a graph of other weights is made anew. Raises ``OSError`` if the folder cannot be
    written.
    """
    # A new version may trace or read graphs differently.
    path = folder / f"{name}-{digest[:16]}-torch{torch.__version__}-openvino{openvino.__version__[:12]}"
    files = path / "graph.xml", path / "graph.bin"
    if all(file.is_file() for file in files):
        graph: openvino.Model = openvino.Core().read_model(*files)
        if graph.has_rt_info(_DIGEST) and graph.get_rt_info(_DIGEST).astype(str) == digest:
            return graph
        raise ValueError(f"{path} is not the graph of the weights {digest[:12]}: remove it")
    graph = traced_graph(module, example)
    graph.set_rt_info(digest, _DIGEST)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        openvino.save_model(graph, Path(unfinished) / files[0].name, compress_to_fp16=False)
        path.mkdir(exist_ok=True)
        for file in reversed(files):  # the weights first: a graph without them is not read
            (Path(unfinished) / file.name).replace(file)
    return graph
