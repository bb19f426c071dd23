"""TensorRT's own report on a built engine: did the layers come out in the precision that was asked for?

The JSON changed between 10.x (one `Format/Datatype` text, `Bindings`) and 11.x (`Format` and `DataType`, `I/O Tensors`);
both are read. An fp16 bundle whose engine holds no half layer is an error, not a warning.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from digseg_engine.errors import VerificationError
from digseg_engine.precisions import PRECISIONS


def type_of(tensor: dict[str, Any]) -> str:
    """ "fp16", "fp32", ... of one tensor entry of either schema, "other" when it names none of ours."""
    text = str(tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or "")
    return next((name for name, spec in PRECISIONS.items() if spec.reported.search(text)), "other")


def count_types(report: str) -> Counter[str]:
    """Layers by the type of their first output. Raises VerificationError for a report without layer details."""
    try:
        body = json.loads(report)
        layers = body["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(
            f"the engine's inspector report cannot be read: {error!r}; expected JSON with Layers"
        ) from error
    detailed = [layer for layer in layers if isinstance(layer, dict) and layer.get("Outputs")]
    if not detailed:
        raise VerificationError(
            f"the engine's inspector names {len(layers)} layers without types; expected an engine built with "
            "profiling verbosity DETAILED"
        )
    return Counter(type_of(layer["Outputs"][0]) for layer in detailed)


def borders(report: str) -> list[str]:
    """Names of the engine's inputs and outputs, from either schema."""
    body = json.loads(report)
    listed = body.get("I/O Tensors") or body.get("Bindings") or []
    return [entry["Name"] if isinstance(entry, dict) else str(entry) for entry in listed]


def check_precision_of(report: str, precision: str) -> Counter[str]:
    """The counts, when the asked precision is among them. Raises VerificationError for an engine in something else."""
    counts = count_types(report)
    if not counts[precision]:
        listed = ", ".join(f"{n} {name}" for name, n in counts.most_common())
        raise VerificationError(
            f"the engine has no {precision} layer (found {listed}); expected the graph's precision; nothing was kept; "
            "build it from the bundle's own graph, without other tools in between"
        )
    return counts
