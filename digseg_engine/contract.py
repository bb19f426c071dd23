"""The borders of the exported graphs: tensor names, dtypes, axes. Written into every manifest; read by every runtime.

Lowest layer: imports nothing of ours but errors. Change anything here and CONTRACT_VERSION must change with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BUNDLE_FORMAT = "digseg.bundle/1"
CONTRACT_VERSION = 1
TOKEN_BUCKETS = (8, 16, 32, 77)  # prompts are padded to the shortest bucket that holds the longest of them


@dataclass(frozen=True)
class TensorSpec:
    """One graph border. Axes are names (dynamic) or numbers; dtype "graph" means the precision of the bundle."""

    name: str
    dtype: str
    axes: tuple[str | int, ...]
    meaning: str


IMAGE = TensorSpec("image", "float32", ("B", 3, "H", "W"), "RGB in -1..1; H and W are multiples of the stride")
TOKEN_IDS = TensorSpec("token_ids", "int64", ("K", "L"), "token numbers, start and end tokens included")
TOKEN_MASK = TensorSpec("token_mask", "bool", ("K", "L"), "False at padding")
TEXT_KEYS = TensorSpec("text_keys", "graph", ("K", "S", "heads", "d", "L"), "folded text keys of every scale")
TEXT_VALUES = TensorSpec("text_values", "graph", ("K", "S", "heads", "L", "Co"), "folded text values of every scale")
LOGITS = TensorSpec("logits", "float32", ("B", "K", "H/r", "W/r"), "0 is the decision border")


@dataclass(frozen=True)
class GraphSpec:
    """A graph's file and its borders, in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


TEXT_ENCODER = GraphSpec("text_encoder.onnx", (TOKEN_IDS, TOKEN_MASK), (TEXT_KEYS, TEXT_VALUES))
SEGMENTER = GraphSpec("segmenter.onnx", (IMAGE, TEXT_KEYS, TEXT_VALUES, TOKEN_MASK), (LOGITS,))
GRAPHS = {"text_encoder": TEXT_ENCODER, "segmenter": SEGMENTER}


def contract_json() -> dict[str, Any]:
    """The contract as written into `manifest.json`."""
    graphs = {
        name: {
            "file": graph.file,
            "inputs": [{**asdict(tensor), "axes": list(tensor.axes)} for tensor in graph.inputs],
            "outputs": [{**asdict(tensor), "axes": list(tensor.axes)} for tensor in graph.outputs],
        }
        for name, graph in GRAPHS.items()
    }
    return {"version": CONTRACT_VERSION, "token_buckets": list(TOKEN_BUCKETS), "graphs": graphs}


def token_bucket(length: int) -> int:
    """Smallest bucket that holds `length` tokens (the last one when none does)."""
    return next((bucket for bucket in TOKEN_BUCKETS if length <= bucket), TOKEN_BUCKETS[-1])
