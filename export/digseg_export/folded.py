"""From open graphs to a folded bundle: the text of a vocabulary made a constant, and the map it answers held to PyTorch's.

The graphs are converted, verified and given their threshold as those of every bundle. Then mask decoder and presence become
`labels.onnx` (`fold_names.py`), and text encoder and tokenizer leave. What is published is compared once more: label maps and
logits of all names with PyTorch float32, and the map with that of the graphs it was made of, which must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from digseg_engine.contract import (
    IMAGE_ENCODER,
    LABEL_MAP,
    LABELS,
    LOGITS,
    MASK_DECODER,
    PRESENCE,
    PRESENCE_LOGITS,
    TEXT,
    TEXT_ENCODER,
    GraphSpec,
    graphs_of,
)
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.precisions import Limits, spec_of
from digseg_engine.runtime.folded import GOLDEN_NAMES, gated
from digseg_engine.vocabulary import Vocabulary
from digseg_export.comparison import Array, Check, CheckError, Tally, hold_to_limits
from digseg_export.conversion import Conversion, Traced, save
from digseg_export.fold_names import CHUNK, MASKS, THERE, Sizes, Text, fold_names
from digseg_export.precision import widen
from digseg_export.quantize import store_half
from digseg_export.softmax_steps import softmax_in_steps
from digseg_export.verify import Graphs, Sample, answer_of

PAIRS = 400  # of a picture and a name that are compared; at least one picture
STAGE, SAME = "labels", "labels against the open graphs"
NO_DIFFERENCE = (
    0.999  # share of the map that is that of the graphs it was made of, or as much as PyTorch's where that is less:
)
# a runtime fuses the two differently, and where numbers are rounded to 8 bits a last bit can become a step


@dataclass(frozen=True)
class Folded:
    """A vocabulary with what its graph is made with: its text, and sizes of the model."""

    vocabulary: Vocabulary
    text: Text
    sizes: Sizes
    presence: bool

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """The graphs of the bundle."""
        return tuple(graphs_of(self.presence, self.vocabulary.folding).values())

    @property
    def labels(self) -> GraphSpec:
        """The graph that answers."""
        return self.specs[-1]

    def reference(self, sample: Sample) -> tuple[Array, Array]:
        """What PyTorch answers of all names about its pictures: logits [B, K, h, w] of those that are there, label map."""
        logits = gated(sample.logits, sample.presence, self.sizes.threshold)
        return logits, label_map_of(logits, self.sizes.cell).astype(self.vocabulary.folding.label_dtype)


def folded_of(checkpoint: Checkpoint, vocabulary: Vocabulary, cell: int, threshold: float | None) -> Folded:
    """The text of a vocabulary by PyTorch in float32, at the length of its longest prompt."""
    parts = [_text(checkpoint, vocabulary.prompts[i : i + 256]) for i in range(0, len(vocabulary.prompts), 256)]
    longest = max(int(mask.sum(1).max()) for _, _, mask in parts)
    keys = np.concatenate([_to_length(keys, longest, 4) for keys, _, _ in parts])
    values = np.concatenate([_to_length(values, longest, 3) for _, values, _ in parts])
    mask = np.concatenate([_to_length(mask, longest, 1) for _, _, mask in parts])
    presence = bool(checkpoint.config.student.presence_width)
    return Folded(vocabulary, Text(keys, values, mask), Sizes(checkpoint.stride, cell, threshold), presence)


@torch.no_grad()
def _text(checkpoint: Checkpoint, prompts: tuple[str, ...]) -> tuple[Array, Array, Array]:
    ids, mask = checkpoint.tokenizer.encode(prompts)
    text = checkpoint.text_encoder(torch.from_numpy(ids)).last_hidden_state
    folded = checkpoint.student.fold_text(text, torch.from_numpy(mask))
    live = folded.mask.to(text.dtype)[:, None, None, None, :]
    return (folded.keys * live).numpy(), (folded.values * live.transpose(-1, -2)).numpy(), mask


def _to_length(array: Array, length: int, axis: int) -> Array:
    """Padding is cut or added; the model masks it."""
    cut = array.take(range(min(length, array.shape[axis])), axis)
    return np.pad(cut, [(0, length - cut.shape[axis]) if i == axis else (0, 0) for i in range(array.ndim)])


def write_labels_graph(folder: Path, traced: Traced, conversion: Conversion, folded: Folded) -> None:
    """`labels.onnx` (and what a CPU runs instead) in place of text encoder, presence and mask decoder, whose files leave."""
    folding, sizes, text = folded.vocabulary.folding, folded.sizes, folded.text
    masks = onnx.load(str(folder / MASK_DECODER.file))
    presence = onnx.load(str(folder / PRESENCE.file)) if folded.presence else None
    remove_open(folder)
    labels = fold_names(masks, presence, text, folding, sizes)
    if conversion.spec.quantised:
        store_half(labels)
    save(labels, folder / LABELS.file)
    if not conversion.spec.quantised:
        exact = fold_names(
            traced.models[MASK_DECODER.file], traced.models.get(PRESENCE.file), text, folding, sizes, chunk=1
        )
        stored = onnx.load(str(folder / LABELS.file), load_external_data=False)
        on_cpu = softmax_in_steps(widen(exact, stored, conversion.precision))
        onnx.save_model(on_cpu, str(folder / LABELS.cpu_file))


def remove_open(folder: Path) -> None:
    """Remove the graphs that `labels.onnx` stands for."""
    for spec in (TEXT_ENCODER, MASK_DECODER, PRESENCE):
        for name in (spec.file, spec.cpu_file, spec.data_file):
            (folder / name).unlink(missing_ok=True)


def folded_report(report: dict[str, Any]) -> dict[str, Any]:
    """The precision policy of a folded bundle: that of the graphs that `labels.onnx` was made of, under its own name."""
    graphs = dict(report["graphs"])
    graphs.pop(TEXT_ENCODER.file, None)
    masks, presence = graphs.pop(MASK_DECODER.file), graphs.pop(PRESENCE.file, None)
    merged = {**masks, **_prefixed(masks, MASKS)}
    if presence is not None:
        for key, named in _prefixed(presence, THERE).items():
            merged[key] = {**merged.get(key, {}), **named}
        merged["casts"] = masks.get("casts", 0) + presence.get("casts", 0)
        for kind, said in presence.get("islands", {}).items():
            before = merged["islands"].get(kind, {"count": 0})
            merged["islands"] = {**merged["islands"], kind: {**said, "count": said["count"] + before["count"]}}
        if "reason" in presence:
            merged["presence"] = f"in float32: {presence['reason']}"
    return {**report, "graphs": {**graphs, LABELS.file: merged}}


def _prefixed(words: dict[str, Any], prefix: str) -> dict[str, dict[str, str]]:
    """Nodes that a report names, as they are called in the folded graph."""
    return {
        key: {f"{prefix}/{node}": why for node, why in words[key].items()}
        for key in ("nodes", "left_out")
        if key in words
    }


def label_map_of(logits: Array, cell: int) -> Array:
    """Logits [B, K, h, w] -> the label of the strongest at every pixel, int64 [B, H, W]; of equal ones the first."""
    b, k, h, w = logits.shape
    best, label = np.zeros((b, h * cell, w * cell), np.float32), np.zeros((b, h * cell, w * cell), np.int64)
    for i in range(k):
        plane = torch.from_numpy(np.ascontiguousarray(logits[:, i : i + 1]))
        large = torch.nn.functional.interpolate(plane, scale_factor=cell, mode="bilinear", align_corners=False).numpy()[
            :, 0
        ]
        np.copyto(label, i + 1, where=large > best)
        np.maximum(best, large, out=best)
    return label


def name_samples(checkpoint: Checkpoint, vocabulary: Vocabulary, data: list[Sample]) -> list[Sample]:
    """Pictures of the verification data, evenly chosen, answered by PyTorch for all names."""
    pictures = [(s.domain, s.image[i : i + 1]) for s in data for i in range(len(s.image))]
    count = max(1, min(len(pictures), PAIRS // len(vocabulary.names)))
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    return [answer_of(checkpoint, domain, image, vocabulary.prompts) for domain, image in chosen]


def open_maps(
    folder: Path, traced: Traced, folded: Folded, data: list[Sample], precision: str
) -> dict[bool, list[Array]]:  # fmt: skip
    """The label maps of the open graphs, as stored (False) and as a CPU runs them (True), about PyTorch's own encodings."""
    found = {}
    stored, other = [False] * spec_of(precision).on_cpu, [True] * (folder / MASK_DECODER.cpu_file).is_file()
    for on_cpu in (*stored, *other):
        graphs = Graphs.of(folder, traced.specs, on_cpu)
        found[on_cpu] = [_open_map(graphs, folded, sample) for sample in data]
    return found


def _open_map(graphs: Graphs, folded: Folded, sample: Sample) -> Array:
    logits, presence = [], []
    text = dict(zip([tensor.name for tensor in TEXT], (folded.text.keys, folded.text.values, folded.text.mask)))
    for start in range(0, len(folded.text.mask), CHUNK):
        asked = {"encoding": sample.encoding, **{name: array[start : start + CHUNK] for name, array in text.items()}}
        logits += graphs.run(MASK_DECODER, asked)
        presence += graphs.run(PRESENCE, asked) if folded.presence else []
    there = np.concatenate(presence, 1) if presence else None
    return label_map_of(gated(np.concatenate(logits, 1), there, folded.sizes.threshold), folded.sizes.cell)


def verify_labels(
    folder: Path, folded: Folded, data: list[Sample], opened: dict[bool, list[Array]], limits: Limits, precision: str,
    progress: Callable[[str], None],
) -> list[Check]:  # fmt: skip
    """The written graphs on every sample. Raises CheckError for logits, presence or a map over the limits, and for a map that is
    not that of the graphs it was made of (opened; empty: not looked at)."""
    checks = []
    for on_cpu, graphs in _forms(folder, folded, precision):
        tally, presence, right, same = Tally(), Tally(masks=False), list[float](), list[float]()
        for number, sample in enumerate(data):
            progress(f"{graphs.names[LABELS.file]} on {sample.domain} ({number + 1} of {len(data)})")
            want, label_map = folded.reference(sample)
            (encoding,) = graphs.run(IMAGE_ENCODER, {"image": sample.image})
            got = _asked(graphs, folded, encoding)
            right.append(float((got[LABEL_MAP.name] == label_map).mean()))
            if LOGITS.name in got:
                tally.add(*_both(want, got[LOGITS.name]))
            if sample.presence is not None:
                presence.add(sample.presence, got[PRESENCE_LOGITS.name])
            if on_cpu in opened:
                mine = _asked(graphs, folded, sample.encoding)[LABEL_MAP.name]
                same.append(float((mine == opened[on_cpu][number]).mean()))
        checks += _judged(graphs.names[LABELS.file], tally, presence, right, same, limits)
    return checks


def _both(want: Array, got: Array) -> tuple[Array, Array]:
    """Logits without the pairs that either holds to be not there: presence is judged by its own numbers, and by the map."""
    apart = ((want.max((2, 3)) <= -20) | (got.max((2, 3)) <= -20))[:, :, None, None]
    return np.where(apart, 0, want), np.where(apart, 0, got)


def _forms(folder: Path, folded: Folded, precision: str) -> Iterator[tuple[bool, Graphs]]:
    """The graphs as stored, where a CPU runs them, and what a CPU runs instead."""
    if spec_of(precision).on_cpu:
        yield False, Graphs.of(folder, folded.specs, on_cpu=False)
    if (folder / LABELS.cpu_file).is_file():
        yield True, Graphs.of(folder, folded.specs, on_cpu=True)


def _asked(graphs: Graphs, folded: Folded, encoding: Array) -> dict[str, Array]:
    found = graphs.run(folded.labels, {"encoding": encoding})
    return dict(zip([tensor.name for tensor in folded.labels.outputs], found))


def _judged(
    graph: str, tally: Tally, presence: Tally, right: list[float], same: list[float], limits: Limits
) -> list[Check]:  # fmt: skip
    numbers = tally if tally.count else presence
    found = numbers.check(STAGE, graph) if numbers.count else Check(STAGE, graph, 0.0, 0.0, 0.0)
    check = Check(**{**vars(found), "label_agreement": float(np.mean(right))})
    hold_to_limits(check, limits)
    checks = [check, *([presence.check(f"presence, {STAGE}", graph)] if presence.count and tally.count else [])]
    hold_to_limits(checks[-1], limits)
    hold_labels(check, limits.labels, "PyTorch")
    if same:
        checks.append(Check(SAME, graph, 0.0, 0.0, 0.0, label_agreement=float(np.mean(same))))
        hold_labels(checks[-1], min(NO_DIFFERENCE, limits.labels), "the graphs it was made of")
    return checks


def hold_labels(check: Check, least: float, whom: str) -> None:
    """Raises CheckError when too little of a label map is right."""
    if check.label_agreement is None or not check.label_agreement >= least:
        raise CheckError(f"{check.stage} ({check.graph}) agrees with {whom} on {check.label_agreement:.4%} of the map, at least "
                         f"{least:.1%} expected; nothing was published", check)  # fmt: skip


def golden_sample(folder: Path, folded: Folded, data: list[Sample]) -> Sample:
    """The picture that shows most names, then most of them, among those whose map the graphs answer best."""
    graphs = Graphs.of(folder, folded.specs, on_cpu=True)

    def worth(sample: Sample) -> tuple[bool, int, int]:
        (encoding,) = graphs.run(IMAGE_ENCODER, {"image": sample.image})
        want, got = folded.reference(sample)[1], _asked(graphs, folded, encoding)[LABEL_MAP.name]
        return bool((want == got).mean() >= NO_DIFFERENCE), len(np.unique(want)), int((want > 0).sum())

    return max(data, key=worth)


def golden_arrays(folded: Folded, sample: Sample) -> dict[str, Array]:
    """What `golden.safetensors` of a folded bundle holds."""
    logits, label_map = folded.reference(sample)
    arrays = {"image": sample.image.astype(np.float32), LABEL_MAP.name: label_map}
    if not folded.vocabulary.labels_only:
        arrays[LOGITS.name] = np.ascontiguousarray(logits[:, :GOLDEN_NAMES], np.float32)
    if sample.presence is not None:
        arrays[PRESENCE_LOGITS.name] = sample.presence.astype(np.float32)
    return arrays
