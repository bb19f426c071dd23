"""What a parser made of a graph, looked at before a plan is built: borders, types, float32 islands, integer weights.

In a strongly typed network the types of its tensors are those that a GPU computes in, so what an inspector says of a
finished engine can be known before, and on a machine without a GPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from digseg_engine.bundle import Bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import VerificationError
from digseg_engine.precisions import PLAIN, PRECISIONS, spec_of

TYPES = {spec.tensorrt: name for name, spec in PRECISIONS.items()}
BORDERS = {"float32": "FLOAT", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
WORK = ("CONVOLUTION", "MATRIX_MULTIPLY")  # what costs time
EXACT = ("SOFTMAX", "NORMALIZATION", "REDUCE")  # float32 in every precision
MOST_INTEGERS = 1024  # numbers of an Int64 constant: shapes, axes and positions have fewer


def check_network(network: Any, bundle: Bundle, spec: GraphSpec) -> dict[str, int]:
    """Layers that cost time, by the type they compute in ("int8": layers that round to it).

    Raises VerificationError for borders other than the contract's, no layer in the graph's precision, a float32 island
    that is not in float32, and an Int64 constant that is no shape.
    """
    precision, own = bundle.manifest["precision"], precision_of(bundle, spec)
    _check_borders(network, spec, str(precision["name"]))
    named = set(precision.get("graphs", {}).get(spec.file, {}).get("nodes", {}))
    found: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kind = layer.type.name
        if kind == "CONSTANT":
            _check_constant(layer, spec)
        elif kind in EXACT or layer.name in named:
            _check_island(layer, spec)
        if kind in WORK or kind == "QUANTIZE":
            found[TYPES.get(_type(layer.get_output(0)), "other")] += 1
    if not found[own]:
        words = ", ".join(f"{n} {name}" for name, n in found.most_common()) or "none that costs time"
        raise VerificationError(f"{spec.file} has no {own} layer (found {words}); expected the precision that the "
                                "manifest names; export the bundle again")  # fmt: skip
    return dict(found)


def precision_of(bundle: Bundle, spec: GraphSpec) -> str:
    """What a graph computes in: the bundle's precision, or float32 where it was left alone."""
    precision = bundle.manifest["precision"]
    return str(precision.get("graphs", {}).get(spec.file, {}).get("name", precision["name"]))


def _type(tensor: Any) -> str:
    return str(tensor.dtype.name)


def _check_borders(network: Any, spec: GraphSpec, precision: str) -> None:
    """Names, types and number of axes of inputs and outputs are the contract's."""
    spec_of_graph = spec_of(precision)
    border = (spec_of_graph if spec_of_graph.reduced else PLAIN).tensorrt
    wanted = {t.name: (BORDERS.get(t.dtype, border), len(t.axes)) for t in (*spec.inputs, *spec.outputs)}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    got = {tensor.name: (_type(tensor), len(tensor.shape)) for tensor in tensors}
    for name in sorted({*wanted, *got}):
        if wanted.get(name) != got.get(name):
            raise VerificationError(f"{spec.file}: {name} is {got.get(name) or 'missing'} in the parsed network; expected "
                                    f"{wanted.get(name) or 'no such tensor'} (type, axes); export the bundle again")  # fmt: skip


def _check_constant(layer: Any, spec: GraphSpec) -> None:
    count = 1
    for size in layer.get_output(0).shape:
        count *= size
    if _type(layer.get_output(0)) == "INT64" and count > MOST_INTEGERS:
        raise VerificationError(f"{spec.file}: {layer.name} is an Int64 weight of {count} numbers; expected Int64 for shapes and "
                                f"positions alone (at most {MOST_INTEGERS}); store it as float or Int32")  # fmt: skip


def _check_island(layer: Any, spec: GraphSpec) -> None:
    tensors = [layer.get_input(i) for i in range(layer.num_inputs)] + [layer.get_output(0)]
    found = {TYPES[_type(t)] for t in tensors if t is not None and _type(t) in TYPES}
    if found - {PLAIN.name}:
        raise VerificationError(f"{spec.file}: {layer.name} ({layer.type.name.lower()}) computes in {', '.join(sorted(found))}; "
                                "expected float32, an island of precision.json; export the bundle again")  # fmt: skip
