"""How an export converts to a precision: one policy per graph, measured on calibration data, and how to write and run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from torch import nn

from digseg_engine.contract import (
    GRAPHS,
    IMAGE_ENCODER,
    MASK_DECODER,
    PRESENCE,
    TEXT_ENCODER,
    TOKEN_MASK,
    GraphSpec,
    graphs_of,
)
from digseg_engine.model.graph_modules import GraphModules
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.precisions import Limits, PrecisionSpec, spec_of
from digseg_engine.runtime.profile import Profile
from digseg_export.bisect_islands import Cure, find_cure
from digseg_export.calibration import Calibration, calibration
from digseg_export.emulate import emulate
from digseg_export.precision import LOGITS, Policy, last_layer, to_precision, widen
from digseg_export.quantize import left_alone, quantise
from digseg_export.ranges import Feeds, range_islands, session, tensor_ranges
from digseg_export.scan_prompts import scan_prompts
from digseg_export.verify import Form, Graphs, Sample, Torch

Models = dict[str, onnx.ModelProto]
LAST_LAYERS = {
    MASK_DECODER: LOGITS,
    PRESENCE: "the threshold decides whether a prompt is there, so the last layer computes in float32",
}
PRESENCE_EXACT = "one number decides whether a prompt is there at all, and this graph is a small part of the work"
SCANNED = (PRESENCE, MASK_DECODER)  # a CPU should run their prompts one after the other


@dataclass(frozen=True)
class Traced:
    """The folded PyTorch modules and the float32 graphs made from them, by file name."""

    parts: GraphModules
    models: Models
    stride: int

    def module(self, spec: GraphSpec) -> nn.Module:
        """The module that a graph was traced from."""
        found: nn.Module = getattr(self.parts, next(name for name, graph in GRAPHS.items() if graph is spec))
        return found

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """The graphs of this model, in the order they are asked."""
        return tuple(graphs_of(PRESENCE.file in self.models).values())


@dataclass(frozen=True)
class Conversion:
    """What each graph becomes: policies by file name, int8/fp8 graphs where made, and the words of the report."""

    precision: str
    policies: dict[str, Policy]
    quantised: dict[str, tuple[onnx.ModelProto, dict[str, Any]]] = field(default_factory=dict)
    calibrated_on: str = ""
    written: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights_folder: Path | None = None  # folder of a large model's weights

    @property
    def spec(self) -> PrecisionSpec:
        """What is to be known of the precision."""
        return spec_of(self.precision)

    @classmethod
    def measure(
        cls, checkpoint: Checkpoint, models: Models, precision: str, options: Any, progress: Callable[[str], None],
        weights_folder: Path | None = None,
    ) -> Conversion:  # fmt: skip
        """Decide islands by kind, by measured range, and (int8, fp8) the layers that are left out."""
        specs = [spec for spec in GRAPHS.values() if spec.file in models]
        policies = {spec.file: Policy(precision) for spec in specs}
        for spec in specs:
            if spec in LAST_LAYERS:
                policies[spec.file].nodes.update(last_layer(models[spec.file], LAST_LAYERS[spec]))
        kind = spec_of(precision)
        if kind.unmeasured or (kind.reduced and not options.measured_islands):
            words = kind.unmeasured or "nothing: islands by kind alone"
            return cls(precision, policies, calibrated_on=words, weights_folder=weights_folder)
        batches, words = calibration(checkpoint, options.calibration, options.painted)
        feeds = calibration_feeds(batches, models, weights_folder)
        quantised = {}
        for spec in specs:
            progress(f"ranges of {spec.file}")
            ranges = tensor_ranges(models[spec.file], feeds[spec.file], weights_folder=weights_folder)
            if kind.reduced:
                policies[spec.file].nodes.update(range_islands(models[spec.file], ranges))
            elif spec is PRESENCE:
                result = left_alone(models[spec.file], PRESENCE_EXACT)
                quantised[spec.file] = (result.model, result.report)
            else:
                progress(f"{precision} of {spec.file}")
                result = quantise(models[spec.file], precision, ranges, feeds[spec.file], policies[spec.file].nodes)
                quantised[spec.file] = (result.model, result.report)
        return cls(precision, policies, quantised, words, weights_folder=weights_folder)

    def with_islands(self, file: str, islands: dict[str, str]) -> Conversion:
        """The same conversion with more float32 islands in one graph."""
        old = self.policies[file]
        return replace(self, policies={**self.policies, file: replace(old, nodes={**old.nodes, **islands})})

    def report(self) -> dict[str, Any]:
        """The policy as written into the bundle: every island and every layer left out, with its reason."""
        return {"name": self.precision, "calibrated_on": self.calibrated_on, "graphs": self.written}

    def write(self, folder: Path, traced: Traced) -> None:
        """Save all graphs (and what a CPU runs instead) into `folder`."""
        for spec in traced.specs:
            self.written[spec.file] = self._write(folder, spec, traced.models[spec.file])

    def forms(self, folder: Path, traced: Traced) -> Iterator[Form]:
        """Every way to verify the graphs that were written into `folder`, made one by one."""

        def written(on_cpu: bool) -> Graphs:
            return Graphs.of(folder, traced.specs, on_cpu, self.weights_folder)

        if not self.spec.reduced:
            yield written(on_cpu=False)
            if not self.spec.quantised:
                yield written(on_cpu=True)
            return
        if not self.weights_folder:
            yield Torch(traced.parts, self.precision)
        yield self.rounded(traced)
        yield written(on_cpu=True)
        # A graph that no CPU kernels take is checked for form, not run. Of a large one the CPU provider would hold every
        # constant in float32 at once.
        if self.spec.on_cpu and not self.weights_folder:
            yield written(on_cpu=False)

    def rounded(self, traced: Traced) -> Graphs:
        """Float32 graphs that round every reduced result (of a precision that is `reduced`)."""
        models = {s.file: emulate(traced.models[s.file], self.policies[s.file], _borders(s)) for s in traced.specs}
        names = {s.file: f"{s.file} rounded" for s in traced.specs}
        return Graphs(models, names, self.weights_folder)

    def _write(self, folder: Path, spec: GraphSpec, model: onnx.ModelProto) -> dict[str, Any]:
        """Save a graph with one external weights file, and what a CPU runs instead over the same file."""
        if spec.file in self.quantised:
            converted, words = self.quantised[spec.file]
            copy = onnx.ModelProto()
            copy.CopyFrom(converted)
            converted = copy
        else:
            converted, words = to_precision(model, self.policies[spec.file], _borders(spec))
            if converted is model:
                converted = onnx.ModelProto()
                converted.CopyFrom(model)
        save(converted, folder / spec.file, keep=self.weights_folder is not None)
        on_cpu = self._cpu_graph(spec, model, onnx.load(str(folder / spec.file), load_external_data=False))
        if on_cpu is not None:
            onnx.save_model(on_cpu, str(folder / spec.cpu_file))
        return words

    def _cpu_graph(self, spec: GraphSpec, model: onnx.ModelProto, stored: onnx.ModelProto) -> onnx.ModelProto | None:
        """The float32 graph over the stored weights, with its prompts scanned; None where it would change nothing."""
        if self.spec.reduced:
            stored = widen(model, stored, self.precision)
        elif self.spec.quantised or spec not in SCANNED:
            return None
        return scan_prompts(stored) if spec in SCANNED else stored

    def cure(
        self, traced: Traced, file: str, data: list[Sample], limits: Limits, progress: Callable[[str], None]
    ) -> Cure:
        """Bisect one graph on the sample with the most prompts asked of real pictures."""
        spec = next(s for s in traced.specs if s.file == file)
        feed = data[0].feeds(spec)
        model, policy = traced.models[file], self.policies[file]
        return find_cure(model, policy, _borders(spec), feed, limits.relative, progress, self.weights_folder)


def save(model: onnx.ModelProto, path: Path, keep: bool = False) -> None:
    """Save with every large constant in one external file beside the graph.

    What an earlier try left in that file goes; keep: all but the constants that the model refers to already.
    """
    data = path.with_suffix(".data")
    if keep and data.is_file():
        os.truncate(data, max((end_of(t) for t in model.graph.initializer), default=0))
    else:
        data.unlink(missing_ok=True)
    options: dict[str, Any] = {"all_tensors_to_one_file": True, "location": data.name, "size_threshold": 1024}
    onnx.save_model(model, str(path), save_as_external_data=True, **options)
    if data.is_file() and not data.stat().st_size:
        data.unlink()  # made for the weights of a large model, of which this graph has none


def end_of(tensor: TensorProto) -> int:
    """Where a constant ends in the data file it refers to; 0 for one that is held."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    return int(where["offset"]) + int(where["length"]) if where else 0


def fix_shapes(path: Path, spec: GraphSpec, profile: Profile, stride: int) -> None:
    """Write every axis of a saved graph that the profile holds static as a number; weights are not touched.

    The text encoder keeps its dynamic axes: prompts are encoded one by one and cached.
    """
    static: dict[str | int, int] = {axis: span.max for axis, span in profile.ranges.items() if span.static}
    static |= {f"{axis}/s": static[axis] // stride for axis in "HW" if axis in static}
    fixed = onnx.load(str(path), load_external_data=False)
    for value, tensor in zip(fixed.graph.input, spec.inputs):
        for dim, axis in zip(value.type.tensor_type.shape.dim, tensor.axes):
            if axis in static:
                dim.Clear()
                dim.dim_value = static[axis]
    onnx.save_model(fixed, str(path))


def calibration_feeds(
    batches: list[Calibration], models: Models, weights_folder: Path | None
) -> dict[str, list[Feeds]]:  # fmt: skip
    """What every graph is fed while it is measured, by file: the float32 graphs before it answer."""

    def answers(spec: GraphSpec, feeds: list[Feeds]) -> list[Feeds]:
        run = session(models[spec.file], weights_folder=weights_folder)
        return [dict(zip([tensor.name for tensor in spec.outputs], run.run(None, feed))) for feed in feeds]

    texts: list[Feeds] = [batch.text_feeds() for batch in batches]
    pictures: list[Feeds] = [{"image": batch.image} for batch in batches]
    folded, encoded = answers(TEXT_ENCODER, texts), answers(IMAGE_ENCODER, pictures)
    asked = [
        {**encoding, **text, TOKEN_MASK.name: batch.token_mask}
        for encoding, text, batch in zip(encoded, folded, batches)
    ]
    return {TEXT_ENCODER.file: texts, IMAGE_ENCODER.file: pictures, PRESENCE.file: asked, MASK_DECODER.file: asked}


def _borders(spec: GraphSpec) -> dict[str, str]:
    return {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
