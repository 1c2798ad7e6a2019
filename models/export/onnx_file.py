"""Writes a graph to an ONNX file with a dynamic batch dimension and metadata.

The file needs no code of this project: preprocessing after the resize, the quantizer and the rounding are inside.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import onnx
import onnxscript as onnxscript  # torch.onnx imports it late; here its absence gets the message of a missing package
import torch

from models.atomic_files import PARTIAL_SUFFIX
from models.errors import ExportError
from models.export.graphs import Graph, decoder_graph, encoder_graph, step_graph
from models.generation import Generator
from models.tokenizer import Tokenizer

OPSET = 18
DTYPES = ("float32", "float16")
Part: TypeAlias = Literal["encoder", "decoder", "generator"]
PARTS: tuple[Part, ...] = get_args(Part)


def export_tokenizer(tokenizer: Tokenizer, part: Literal["encoder", "decoder"], path: Path, *, licence: str) -> None:
    """Writes the encoder or the decoder of a tokenizer on the CPU (see ``models.export.graphs``), in its precision.

    Raises ``ExportError`` with the reason, and ``OSError`` if the file cannot be written.
    """
    graph = encoder_graph(tokenizer) if part == "encoder" else decoder_graph(tokenizer)
    chosen = tokenizer.precision.encoder if part == "encoder" else tokenizer.precision.decoder
    facts = {
        "num_tokens": tokenizer.num_tokens,
        "min_tokens": tokenizer.min_tokens,
        "codebook_size": tokenizer.codebook_size,
        "token_size": tokenizer.token_size,
        "image_size": tokenizer.image_size,
    }
    described = _described(tokenizer, part, chosen.name, licence) | {name: str(value) for name, value in facts.items()}
    _write(graph, path, described)


def export_generator(generator: Generator, path: Path, *, licence: str) -> None:
    """Writes one sampling step of a generator on the CPU. See :func:`export_tokenizer`."""
    facts = {
        "num_tokens": generator.num_tokens,
        "codebook_size": generator.codebook_size,
        "num_classes": generator.num_classes,
    }
    described = _described(generator, "generator", generator.precision.generator.name, licence)
    _write(step_graph(generator), path, described | {name: str(value) for name, value in facts.items()})


def _described(model: Tokenizer | Generator, part: Part, dtype: str, licence: str) -> dict[str, str]:
    if dtype not in DTYPES:
        raise ExportError(f"{model.name} cannot be exported in {dtype}: choose {' or '.join(DTYPES)}")
    return {
        "name": model.name,
        "part": part,
        "revision": model.revision,
        "dtype": dtype,
        "licence": licence,
        "source": model.source,
    }


def _write(graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before the export, which takes seconds
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of PyTorch's own deprecated calls
            program = torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=tuple(graph.dynamic for _ in graph.inputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"the {metadata['part']} of {metadata['name']} cannot be exported: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    assert program is not None  # noqa: S101  None only without dynamo
    program.model.metadata_props.update(metadata)
    program.model.producer_name = "titok"
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        program.save(str(partial))
        onnx.checker.check_model(str(partial), full_check=True)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
