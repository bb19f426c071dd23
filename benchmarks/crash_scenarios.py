"""What `crashes.py` makes die: a scenario writes into a folder, and says what of it must be whole and what the same."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from crash_trials import Scenario, forked, said
from onnx import ModelProto
from PIL import Image

from digseg_engine.bundle import open_bundle
from digseg_engine.named import SHIPPED_BUNDLE

UNSTEADY = ("manifest.json", "sbom.cdx.json")  # name the day and the seconds; the manifest's hashes of the others count
NAMES = ("segment", "tiles", "training", "checkpoint", "verdict", "export")


def program(*words: object) -> None:
    """One of the project's commands, as its own entry runs it."""
    name, *rest = map(str, words)
    sys.argv = [name, *rest]
    if name == "digseg-export":
        from digseg_export.cli import main
    else:
        from digseg_engine.cli import main
    main()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by path of the files that must be the same after every way to them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNSTEADY)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def results_whole(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name.startswith(".digseg-"):
            continue  # a name that nobody takes for a result
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".npy":
            np.load(path)


def result_hashes(folder: Path) -> dict[str, str]:
    """Pictures and arrays; of a result's JSON all but its seconds."""
    found = {}
    for name, digest in hashes(folder).items():
        if name.endswith(".json"):
            body = json.loads((folder / name).read_text())
            body.pop("seconds", None)
            digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        found[name] = digest
    return found


def bundle_whole(folder: Path) -> None:
    if (folder / "bundle").exists():
        open_bundle(folder / "bundle")


def checkpoint_whole(folder: Path) -> None:
    from digseg_engine.model.pretrained import load_checkpoint

    if (folder / "checkpoint").exists():
        load_checkpoint(folder / "checkpoint")


def states_whole(folder: Path) -> None:
    from safetensors.numpy import load_file

    from digseg_engine.training.state import complete_states

    for state in complete_states(folder / "run" / "state"):
        body = json.loads((state / "state.json").read_text())
        for name, size in body["files"].items():
            assert (state / name).stat().st_size == size, name
            load_file(state / name)


def train(folder: Path) -> None:
    from small_stage import fit

    run = folder / "run"
    weights = fit(run, resume=(run / "config.json").exists(), save_every=2, steps=7)
    (folder / "weights.txt").write_text(str(weights.tolist()))


def trained_hashes(folder: Path) -> dict[str, str]:
    """Weights, averages and moments. The random numbers of Python and NumPy in a state are the process's."""
    kept = ("weights.txt", "model.safetensors", "average.safetensors", "optimizer.safetensors")
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(kept)}


def choose(folder: Path) -> int:
    """Start on the shipped bundle with a cache of its own; 0 when the verdict was known, 3 when it was measured."""
    from digseg_engine import Engine
    from digseg_engine.runtime import choice

    plain, measured = choice.measure, []
    choice.measure = lambda *given, **named: measured.append(1) or plain(*given, **named)  # type: ignore[func-returns-value]
    os.environ["DIGSEG_CACHE"] = str(folder / "cache")
    Engine.load(SHIPPED_BUNDLE).segment(np.zeros((64, 64, 3), np.uint8), ["road"])
    return 3 if measured else 0


def scenarios(room: Path, wanted: set[str]) -> list[Scenario]:
    """All of them; `room` gets what they read."""
    if "export" in wanted:
        fewer_scenes()
    rng = np.random.default_rng(0)
    (room / "in").mkdir()
    for name in "a":
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), np.uint8)).save(room / "in" / f"{name}.png")
    if wanted & {"checkpoint", "export"} and forked(lambda: make_checkpoint(room / "pico")):
        raise SystemExit(f"no checkpoint to begin with: {said()}")

    def segment(picture: Path, *more: str) -> Callable[[Path], object]:
        words = ("-p", "road", "-b", SHIPPED_BUNDLE, "--backend", "onnxruntime", *more, "-o")
        return lambda out: program("digseg", "segment", picture, *words, out)

    export = ("digseg-export", room / "pico", "--precision", "fp16", "--rtol", "0.05", "--min-iou", "0.5", "-o")
    return [
        Scenario("segment", segment(room / "in", "--size", "64"), results_whole, result_hashes),
        Scenario("tiles", segment(room / "in" / "a.png", "--tile", "64"), results_whole, result_hashes),
        Scenario("training", train, states_whole, trained_hashes),
        Scenario("checkpoint", lambda out: copy_checkpoint(room / "pico", out / "checkpoint"), checkpoint_whole, hashes, True),
        Scenario("verdict", lambda out: choose(out) and None, results_whole, lambda out: {}),
        Scenario("export", lambda out: program(*export, out / "bundle"), bundle_whole, hashes,
                 quick=lambda: remembered_traces(room / "pico")),
    ]  # fmt: skip


@contextmanager
def remembered_traces(checkpoint: Path) -> Iterator[None]:
    """Graphs are traced once, here, and given to all runs that are forked meanwhile. Once exported in this process, all that an
    export imports is there for them too."""
    from digseg_engine.precisions import Limits
    from digseg_export import to_onnx
    from digseg_export.publish import export_bundle

    known: dict[str, Any] = {}
    export = to_onnx.export_graph

    def once(module: Any, spec: Any, *arguments: Any) -> Any:
        if spec.file not in known:
            known[spec.file] = export(module, spec, *arguments).SerializeToString()
        return ModelProto.FromString(known[spec.file])

    to_onnx.export_graph = once
    try:
        export_bundle(checkpoint, "fp16", checkpoint.with_name("first"), Limits(0.05, 0.5))
        gc.collect()  # sessions of ONNX Runtime, which a fork must not meet
        yield
    finally:
        to_onnx.export_graph = export


def fewer_scenes() -> None:
    """An export of the smallest checkpoint on as few scenes as the tests take."""
    from digseg_export import calibration, presence_threshold, verify

    verify.SCENES_PER_DOMAIN = calibration.SCENES_PER_DOMAIN = 1
    presence_threshold.SCENES_PER_DOMAIN = 5


def make_checkpoint(folder: Path) -> None:
    """The smallest checkpoint of the tests."""
    from conftest import nano_preset
    from nano_models import build_nano, pico_preset

    from digseg_engine.model.pretrained import save_checkpoint
    from digseg_engine.worlds.vocabulary import train_tokenizer

    tokenizer = train_tokenizer(704)
    preset = getattr(nano_preset, "__wrapped__", None) or nano_preset.__pytest_wrapped__.obj
    save_checkpoint(build_nano(pico_preset(preset()), tokenizer), tokenizer.to_str(), folder)


def copy_checkpoint(source: Path, target: Path) -> None:
    from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint

    save_checkpoint(load_checkpoint(source), (source / "tokenizer" / "tokenizer.json").read_text(), target)
