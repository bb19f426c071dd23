"""The borders of the exported graphs: tensor names, dtypes, axes. Written into every manifest; read by every runtime.

Lowest layer: imports nothing of ours but errors. Change what stands here and CONTRACT_VERSION must change with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

BUNDLE_FORMAT = "digseg.bundle/2"
CONTRACT_VERSION = 2
FOLDED_CHUNK = (
    32  # names that the graph of a folded bundle asks together; more are asked in turn, by a loop of the graph
)
ABSENT = -20.0  # the logit of every pixel of a prompt that presence says is not there
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
ENCODING = TensorSpec(
    "encoding", "graph", ("B", "M", "H/s", "W/s"), "all of a picture that no prompt changes; s is the stride"
)
PRESENCE_LOGITS = TensorSpec(
    "presence", "float32", ("B", "K"), "is the prompt in the picture; the manifest has the threshold"
)
LOGITS = TensorSpec("logits", "float32", ("B", "K", "H/r", "W/r"), "0 is the decision border")
LABEL_MAP = TensorSpec(
    "label_map", "label", ("B", "H", "W"), "0 nothing, k + 1 the k-th name; uint8, uint16 with more than 255 names"
)
SCORES = TensorSpec("scores", "float32", ("B", "K"), "mean probability over the cells whose logit is above 0, else 0")


@dataclass(frozen=True)
class GraphSpec:
    """A graph's file and its borders, in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def cpu_file(self) -> str:
        """What a CPU runs instead, where a bundle has it: the same weights in float32, prompts scanned."""
        return self.file.replace(".onnx", ".fp32.onnx")

    @property
    def data_file(self) -> str:
        """The weights of both."""
        return self.file.replace(".onnx", ".data")


TEXT = (TEXT_KEYS, TEXT_VALUES, TOKEN_MASK)  # what a prompt is to the graphs that are asked with it
TEXT_ENCODER = GraphSpec("text_encoder.onnx", (TOKEN_IDS, TOKEN_MASK), (TEXT_KEYS, TEXT_VALUES))
IMAGE_ENCODER = GraphSpec("image_encoder.onnx", (IMAGE,), (ENCODING,))
PRESENCE = GraphSpec("presence.onnx", (ENCODING, *TEXT), (PRESENCE_LOGITS,))  # optional: models with a readout alone
MASK_DECODER = GraphSpec("mask_decoder.onnx", (ENCODING, *TEXT), (LOGITS,))
LABELS = GraphSpec("labels.onnx", (ENCODING,), (LABEL_MAP, LOGITS, SCORES, PRESENCE_LOGITS))  # of a folded bundle
GRAPHS = {
    "text_encoder": TEXT_ENCODER,
    "image_encoder": IMAGE_ENCODER,
    "presence": PRESENCE,
    "mask_decoder": MASK_DECODER,
}
MOST_NAMES = 65_534  # of a folded bundle: the largest label is 65535
BYTE_NAMES = 255  # more names than this, and labels have 16 bits


@dataclass(frozen=True)
class Folding:
    """What the graphs of a folded bundle depend on: how many names it has, and whether it answers their label map alone."""

    names: int
    labels_only: bool = False

    @property
    def label_dtype(self) -> str:
        """Of the label map."""
        return "uint8" if self.names <= BYTE_NAMES else "uint16"


def graphs_of(presence: bool, folding: Folding | None = None) -> dict[str, GraphSpec]:
    """The graphs of a bundle, by name, in the order they are asked. presence: its model has that readout; folding: of a
    folded bundle."""
    if folding is not None:
        return {"image_encoder": IMAGE_ENCODER, "labels": labels_graph(presence, folding)}
    return {name: graph for name, graph in GRAPHS.items() if presence or graph is not PRESENCE}


def labels_graph(presence: bool, folding: Folding) -> GraphSpec:
    """The graph of a folded bundle with the outputs that it has."""
    left_out = {LOGITS, SCORES} if folding.labels_only else set()
    left_out |= set() if presence else {PRESENCE_LOGITS}
    outputs = [tensor for tensor in LABELS.outputs if tensor not in left_out]
    named = [replace(tensor, dtype=folding.label_dtype) if tensor is LABEL_MAP else tensor for tensor in outputs]
    return GraphSpec(LABELS.file, LABELS.inputs, tuple(named))


def contract_json(presence: bool, folding: Folding | None = None) -> dict[str, Any]:
    """The contract as written into `manifest.json` of a bundle with or without a presence readout, open or folded."""
    graphs = {
        name: {
            "file": graph.file,
            "inputs": [{**asdict(tensor), "axes": list(tensor.axes)} for tensor in graph.inputs],
            "outputs": [{**asdict(tensor), "axes": list(tensor.axes)} for tensor in graph.outputs],
        }
        for name, graph in graphs_of(presence, folding).items()
    }
    return {"version": CONTRACT_VERSION, "token_buckets": list(TOKEN_BUCKETS), "graphs": graphs}


def token_bucket(length: int) -> int:
    """Smallest bucket that holds `length` tokens (the last one when none does)."""
    return next((bucket for bucket in TOKEN_BUCKETS if length <= bucket), TOKEN_BUCKETS[-1])
