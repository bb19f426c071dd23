"""The steps of an export as kept stages: each is found as an interrupted export had finished it, or made now and kept.

Not kept: what is quick, and the last step, in which the finished bundle is opened and asked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import EncodeError
from safetensors.numpy import load, save

from digseg_engine.bundle import sha256
from digseg_engine.contract import GraphSpec
from digseg_export.comparison import Check
from digseg_export.conversion import Conversion, Traced
from digseg_export.folded import Folded, remove_open
from digseg_export.kept_stages import Stages
from digseg_export.precision import Policy
from digseg_export.verify import Sample

ARRAYS = ("image", "token_ids", "token_mask", "keys", "values", "encoding", "presence", "logits")  # of a sample
MEASURED, CONVERTED, FOLDED = "measured", "converted", "folded"
STORED, WEIGHTS = "stored", "weights"  # of a large model: graphs that refer to their weights, and these


def graph(stages: Stages, file: str, make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """A traced graph."""
    name = f"traced-{Path(file).with_suffix('').as_posix().replace('/', '-')}"
    if found := stages.find(name):
        return onnx.ModelProto.FromString(found.read("onnx"))
    model = make()
    with suppress(ValueError, EncodeError):  # over 2 GiB
        stages.keep(name, {}, {"onnx": model.SerializeToString()})
    return model


def stored(stages: Stages, folder: Path, traced: Traced, store: Callable[[], None]) -> None:
    """The weights of a large model in its folder, and graphs that refer to them; `store` writes both. In place."""
    models, brought = stages.find(STORED), stages.find(MEASURED) and stages.find(CONVERTED)
    weights = None if brought else stages.find(WEIGHTS)  # converted graphs bring them, and nothing asks for them before
    if models and (weights or brought):
        traced.models.update({file: onnx.ModelProto.FromString(models.read(file)) for file in traced.models})
        if weights:
            weights.place(folder)
        return
    store()
    names = [spec.data_file for spec in traced.specs if (folder / spec.data_file).is_file()]
    stages.keep(WEIGHTS, {}, files={name: folder / name for name in names})
    stages.keep(STORED, {}, {file: model.SerializeToString() for file, model in traced.models.items()})


def measured(stages: Stages, weights_folder: Path | None, make: Callable[[], Conversion]) -> Conversion:
    """How the graphs are converted, as calibration has it."""
    if found := stages.find(MEASURED):
        facts = found.facts
        reports: dict[str, Any] = facts["quantised"]
        models = {file: onnx.ModelProto.FromString(found.read(file)) for file in reports}
        quantised = {file: (models[file], words) for file, words in reports.items()}
        policies = {file: Policy(**words) for file, words in facts["policies"].items()}
        return Conversion(
            facts["precision"], policies, quantised, facts["calibrated_on"], weights_folder=weights_folder
        )
    made = make()
    bodies = {file: model.SerializeToString() for file, (model, _) in made.quantised.items()}
    facts = {"precision": made.precision, "calibrated_on": made.calibrated_on, "policies": _policies(made),
             "quantised": {file: words for file, (_, words) in made.quantised.items()}}  # fmt: skip
    stages.keep(MEASURED, facts, bodies)
    return made


def _policies(conversion: Conversion) -> dict[str, Any]:
    return {file: asdict(policy) for file, policy in conversion.policies.items()}


def converted(stages: Stages, folder: Path, traced: Traced, conversion: Conversion, again: bool = False) -> Conversion:
    """All graphs of a conversion in the folder; again: they are to be written, whatever was kept of others."""
    if not again and (found := stages.find(CONVERTED)):
        found.place(folder)
        policies = {file: Policy(**words) for file, words in found.facts["policies"].items()}
        return replace(conversion, policies=policies, written=found.facts["written"])
    conversion.write(folder, traced)
    facts = {"policies": _policies(conversion), "written": conversion.written}
    stages.keep(CONVERTED, facts, files={path.name: path for path in graph_files(folder, traced.specs)})
    if stages.find(CONVERTED):
        stages.forget(WEIGHTS)  # they are among the files of the converted graphs
    return conversion


def graph_files(folder: Path, specs: tuple[GraphSpec, ...]) -> list[Path]:
    """The files of graphs that are in a folder: the graphs, what a CPU runs instead, weights."""
    names = [name for spec in specs for name in (spec.file, spec.cpu_file, spec.data_file)]
    return [folder / name for name in dict.fromkeys(names) if (folder / name).is_file()]


def answers(stages: Stages, name: str, make: Callable[[], list[Sample]]) -> list[Sample]:
    """Pictures and prompts as PyTorch answered them."""
    if found := stages.find(name):
        arrays = load(found.read("safetensors"))
        return [_sample(i, arrays, **about) for i, about in enumerate(found.facts["samples"])]
    made = make()
    named = {f"{i}.{key}": getattr(s, key) for i, s in enumerate(made) for key in ARRAYS if getattr(s, key) is not None}
    facts = {"samples": [{"domain": sample.domain, "prompts": sample.prompts} for sample in made]}
    stages.keep(name, facts, {"safetensors": save({key: array.copy(order="C") for key, array in named.items()})})
    return made


def _sample(number: int, arrays: dict[str, Any], domain: str, prompts: list[str]) -> Sample:
    held: dict[str, Any] = {key: arrays.get(f"{number}.{key}") for key in ARRAYS}
    return Sample(domain=domain, prompts=tuple(prompts), **held)


def checks(stages: Stages, name: str, files: list[Path], make: Callable[[], list[Check]]) -> list[Check]:
    """The checks of files. Raises what `make` raises."""
    return [Check(**row) for row in found_of(stages, name, files, lambda: [asdict(check) for check in make()])]


def labels(stages: Stages, folder: Path, folded: Folded, fold: Callable[[], list[Check]]) -> list[Check]:
    """The graph of a folded bundle in place of those it was made of, by `fold`, which writes and verifies it; its checks."""
    if found := stages.find(FOLDED):
        remove_open(folder)
        found.place(folder)
        return [Check(**row) for row in found.facts["checks"]]
    made = fold()
    files = graph_files(folder, (folded.labels,))
    stages.keep(FOLDED, {"checks": [asdict(check) for check in made]}, files={path.name: path for path in files})
    return made


def found_of(stages: Stages, name: str, files: list[Path], make: Callable[[], Any]) -> Any:
    """What was found of files, plain JSON. It counts for these very bytes: of others it is found anew."""
    about = {path.name: sha256(path) for path in files}
    if (stage := stages.find(name)) and stage.facts["files"] == about:
        return stage.facts["found"]
    made = make()
    stages.keep(name, {"files": about, "found": made})
    return made
