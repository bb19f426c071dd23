"""What every published graph must satisfy, whatever its precision: valid, standard, portable, of the asked type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from digseg_engine.errors import VerificationError

MAX_OPSET = 20
MAX_OPSET_BF16 = 22  # Conv takes bf16 from opset 22 on
FORBIDDEN = {"GroupNormalization", "Attention"}  # unknown to TensorRT 10.3, or wrong in some later versions


def check_graph(path: Path) -> dict[str, Any]:
    """Run the ONNX checker with full shape inference and our portability rules on a saved graph.

    Returns {opset, nodes, operators, weights: {type: bytes}}. Raises VerificationError naming the first violation.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise VerificationError(
            f"{path.name} fails the ONNX checker: {str(error).splitlines()[0]}; nothing was published"
        ) from error
    model = onnx.load(str(path), load_external_data=False)
    nodes = list(every_node(model.graph))
    domains = {node.domain for node in nodes} - {"", "ai.onnx"}
    operators = Counter(node.op_type for node in nodes)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if domains or len(model.opset_import) != 1 or model.functions:
        raise VerificationError(
            f"{path.name} uses operators outside the standard domain ({sorted(domains)}); expected none"
        )
    half = any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer)
    allowed = MAX_OPSET_BF16 if half else MAX_OPSET
    if opset > allowed:
        raise VerificationError(f"{path.name} has opset {opset}, expected at most {allowed}")
    if bad := sorted(FORBIDDEN & set(operators)):
        raise VerificationError(f"{path.name} holds {', '.join(bad)}, which TensorRT 10.3 cannot read; expected none")
    return {
        "opset": opset,
        "nodes": sum(operators.values()),
        "operators": dict(sorted(operators.items())),
        "weights": weights_by_type(model),
    }


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_node(attribute.g)


def weights_by_type(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of all constants per data type, for the largest types first."""
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        count = 1
        for dim in tensor.dims:
            count *= dim
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        sizes[TensorProto.DataType.Name(tensor.data_type)] += count * width
    return dict(sizes.most_common())
