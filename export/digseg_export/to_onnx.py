"""PyTorch to ONNX: the graphs of a bundle, float32, with dynamic batch, prompts, tokens, height and width.

The graphs use only standard operators up to opset 20 and no GroupNormalization or Attention node, so one file is valid
for TensorRT 10.3 (JetPack 6) to 11.x and for ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import digseg_engine
from digseg_engine.contract import IMAGE_ENCODER, TEXT_ENCODER, GraphSpec
from digseg_engine.errors import DigsegError
from digseg_engine.model.graph_modules import GraphModules
from digseg_engine.model.pretrained import Checkpoint
from digseg_export.disk_offload import stand_ins
from digseg_export.external_data import describe

OPSET = 20


def example_inputs(checkpoint: Checkpoint, size: int) -> dict[str, Tensor]:
    """Small inputs of every graph border (two pictures, three prompts), used for tracing."""
    config, stride = checkpoint.config.student, checkpoint.stride
    scales, length, prompts = len(checkpoint.student.injections), 8, 3
    return {
        "token_ids": torch.ones(prompts, length, dtype=torch.int64),
        "token_mask": torch.ones(prompts, length, dtype=torch.bool),
        "image": torch.zeros(2, 3, size, 2 * size),
        "encoding": torch.randn(2, checkpoint.student.layout.channels, size // stride, 2 * size // stride),
        "text_keys": torch.randn(prompts, scales, config.heads, config.width // config.heads, length),
        "text_values": torch.randn(prompts, scales, config.heads, length, config.head_width),
    }


def export_text_encoder(parts: GraphModules, inputs: dict[str, Tensor]) -> onnx.ModelProto:
    """ONNX of the text encoder and its folding, float32."""
    k, length = torch.export.Dim("K", min=1, max=4096), torch.export.Dim("L", min=2, max=77)
    shapes = {"token_ids": {0: k, 1: length}, "token_mask": {0: k, 1: length}}
    return export_graph(parts.text_encoder, TEXT_ENCODER, _tensors(TEXT_ENCODER, inputs), shapes)


def export_image_encoder(parts: GraphModules, inputs: dict[str, Tensor], stride: int) -> onnx.ModelProto:
    """ONNX of autoencoder, trunk and the shared side of the text pathway, float32."""
    b, rows, columns = _picture_axes()
    shapes = {"image": {0: b, 2: stride * rows, 3: stride * columns}}
    return export_graph(parts.image_encoder, IMAGE_ENCODER, _tensors(IMAGE_ENCODER, inputs), shapes)


def export_asked(module: nn.Module, spec: GraphSpec, inputs: dict[str, Tensor]) -> onnx.ModelProto:
    """ONNX of what is asked with encoding and folded text (mask decoder, presence), float32."""
    b, rows, columns = _picture_axes()
    k, length = torch.export.Dim("K", min=2, max=4096), torch.export.Dim("L", min=2, max=77)
    shapes = {
        "encoding": {0: b, 2: rows, 3: columns},
        "keys": {0: k, 4: length},
        "values": {0: k, 3: length},
        "mask": {0: k, 1: length},
    }
    return export_graph(module, spec, _tensors(spec, inputs), shapes)


def _picture_axes() -> tuple[Any, Any, Any]:
    """B, rows and columns of the encoding. Ranges that the tracer can prove at once; others it corrects and traces again. The
    graph takes any size, 1 included."""
    dim = torch.export.Dim
    return dim("B", min=2, max=63), dim("rows", min=2, max=512), dim("columns", min=2, max=512)


def _tensors(spec: GraphSpec, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(inputs[tensor.name] for tensor in spec.inputs)


def export_graph(
    module: nn.Module, spec: GraphSpec, arguments: tuple[Tensor, ...], shapes: dict[str, Any]
) -> onnx.ModelProto:
    """ONNX of one module, float32, standard operators only. Raises DigsegError when it cannot be traced."""
    offloaded = bool(stand_ins(module))
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=shapes,
                verbose=False,
                optimize=not offloaded,
            )
            return describe(program, module) if offloaded else program.model_proto
    except Exception as error:
        raise DigsegError(f"{spec.file} could not be traced: {str(error).splitlines()[0]}; expected a model built from "
                          "a checkpoint of this project; please report it with `digseg doctor`") from error  # fmt: skip


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what would differ between two exports or grow the file: stack traces, notes, inferred shapes. In place; the model."""
    model.producer_name, model.producer_version, model.doc_string = "digseg-export", digseg_engine.__version__, ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.graph.name, model.graph.doc_string = "digseg", ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's own progress lines, warnings and stdout for the duration."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
