"""When a reduced graph fails: which node fails first, and which float32 islands cure it.

A prefix search: with the first n nodes in the reduced type and the rest in float32, find the smallest n that fails; its
last node is the first bad one. It becomes an island and the search starts again, until the graph holds its limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from digseg_export.emulate import emulate
from digseg_export.precision import Policy
from digseg_export.ranges import Feeds, float_tensors, session

MAX_ISLANDS = 12


@dataclass(frozen=True)
class Culprit:
    """A node that cannot run in the reduced type: its name, operator and what was measured."""

    name: str
    kind: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}): {self.evidence}"


@dataclass(frozen=True)
class Cure:
    """The culprits in the order they were met; `complete` says that making them islands holds the limits."""

    culprits: list[Culprit]
    complete: bool

    @property
    def islands(self) -> dict[str, str]:
        return {culprit.name: f"bisect: {culprit.evidence}" for culprit in self.culprits}


def find_cure(
    model: onnx.ModelProto, policy: Policy, io: dict[str, str], feed: Feeds, limit: float,
    progress: Callable[[str], None] = lambda text: None, weights_folder: Path | None = None,
) -> Cure:  # fmt: skip
    """Bisect one graph on one feed; `limit` is the largest relative error allowed. Runs the emulated graph."""
    wanted = session(model, weights_folder=weights_folder).run(None, feed)
    floats = set(float_tensors(model))
    nodes = [n for n in model.graph.node if policy.reason(n) is None and floats & {*n.input, *n.output}]
    culprits: list[Culprit] = []

    def error_with(count: int) -> float:
        untried = {node.name: "not tried" for node in nodes[count:]}
        trial = replace(policy, nodes={**untried, **policy.nodes, **{culprit.name: "culprit" for culprit in culprits}})
        return _error(wanted, session(emulate(model, trial, io), weights_folder=weights_folder).run(None, feed))

    while len(culprits) < MAX_ISLANDS:
        error = error_with(len(nodes))
        if error <= limit:
            return Cure(culprits, True)
        low, high = 0, len(nodes)
        if error_with(0) > limit:
            break  # the borders alone are too coarse
        while high - low > 1:
            middle = (low + high) // 2
            progress(f"bisect: first {middle} of {len(nodes)} nodes")
            failed = error_with(middle)
            low, high, error = (low, middle, failed) if failed > limit else (middle, high, error)
        node = nodes[high - 1]
        culprits.append(
            Culprit(node.name, node.op_type, _evidence(model, node, feed, error, policy.precision, weights_folder))
        )
        nodes.remove(node)
    return Cure(culprits, False)


def _evidence(
    model: onnx.ModelProto, node: Any, feed: Feeds, error: float, precision: str, weights_folder: Path | None
) -> str:
    with_output = onnx.ModelProto()
    with_output.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    if node.output[0] not in known:
        with_output.graph.output.append(
            onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        )
    (value,) = session(with_output, weights_folder=weights_folder).run([node.output[0]], feed)
    gives = "not finite" if not np.isfinite(error) else f"off by {error:.1e}"
    return f"its output reaches {np.abs(value).max():.4g} in float32; in {precision} the graph is {gives}"


def _error(wanted: list[Any], got: list[Any]) -> float:
    want = np.concatenate([a.ravel() for a in wanted]).astype(np.float64)
    have = np.concatenate([b.ravel() for b in got]).astype(np.float64)
    if not np.isfinite(have).all():
        return float("inf")
    return float(np.linalg.norm(have - want)) / max(float(np.linalg.norm(want)), 1e-12)
