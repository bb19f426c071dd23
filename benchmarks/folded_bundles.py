"""Vocabularies folded into bundles, in fp16 and int8: `python benchmarks/folded_bundles.py --native PROGRAM`

The classes of every painted domain, and those of the class files in `scripts/bundled_classes/` (real pictures), are each made the
names of a folded bundle by the code behind `digseg-export --vocabulary FILE --precision P`; the open graphs are traced once, and
converted and verified once per precision. Of every bundle: what its verification found, its size beside the open one's,
what `digseg verify` says of it, what the engine answers about a picture, and (`--native`) whether the C library's example
program (`kernels/build/examples/segment`) opens it, passes its golden sample and finds the same masks.

One bundle takes minutes. The JSON is written after each, and those that it holds already, of the same checkpoint, are not made
again. Exit code 1 when a bundle is not right.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from export_large import processor
from PIL import Image

from digseg_engine import Engine
from digseg_engine.bundle import sha256
from digseg_engine.data.classes import read_classes
from digseg_engine.model.pretrained import BUNDLED, load_checkpoint
from digseg_engine.precisions import spec_of
from digseg_engine.runtime.verified import verify_bundle
from digseg_engine.vocabulary import Vocabulary, read_vocabulary
from digseg_engine.worlds.scenes import CLASSES, scene
from digseg_export.progress import StepTimer
from digseg_export.publish import Exported, Known, Options, publish, recorded, trace

import onnxruntime  # isort: skip - after ours, which turns its telemetry off

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "folded-bundles.json"
CLASS_FILES = ROOT / "scripts" / "bundled_classes"
OPEN = "open"  # the bundle without a vocabulary
SEED, SIZE = 90_001, 256  # of the painted picture that is asked about
SHOWN = "aerial"  # the domain of the picture for words of real pictures


def lists() -> dict[str, tuple[str, ...]]:
    """The names of every vocabulary: painted domains first, then the class files by their name."""
    real = {path.stem: read_classes(path).names for path in sorted(CLASS_FILES.glob("*.json"))}
    return {**CLASSES, **real}


class Exporter:
    """The bundled checkpoint, traced once; its open graphs are verified once for every precision."""

    def __init__(self) -> None:
        self.timer = StepTimer(lambda step: print(step, file=sys.stderr, flush=True))
        self.checkpoint = load_checkpoint(BUNDLED)
        self.traced = trace(self.checkpoint, self.timer)
        self.tokenizer = (BUNDLED / "tokenizer" / "tokenizer.json").read_bytes()
        self.options = recorded(Options(), BUNDLED)
        self.known: dict[str, Known] = {}

    def export(self, target: Path, precision: str, vocabulary: Vocabulary | None) -> Exported:
        """A verified bundle at `target`."""
        options, limits = replace(self.options, vocabulary=vocabulary), spec_of(precision).limits
        done = publish(self.checkpoint, self.traced, self.tokenizer, target, precision, limits, self.timer, options,
                       self.known.get(precision))  # fmt: skip
        self.known[precision] = done.known
        return done


def size_of(folder: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in folder.iterdir())


def notes(done: Exported) -> list[dict[str, Any]]:
    """What verification found of the written graphs that hold the names."""
    return [{"stage": check.stage, "graph": check.graph, "relative": check.relative, "mask_iou": check.iou,
             "labels_agree": check.label_agreement, "pairs": check.pairs}
            for check in done.checks if check.stage.startswith("labels")]  # fmt: skip


def picture(domain: str) -> Any:
    """A painted picture [H, W, 3]."""
    return scene(SEED, domain if domain in CLASSES else SHOWN, SIZE, "test").image


def opened(bundle: Path, rgb: Any) -> tuple[dict[str, Any], Any]:
    """What `digseg verify` and the engine make of a bundle, and its masks [K, H, W] of a picture."""
    found = verify_bundle(bundle)
    engine = Engine.load(bundle, "onnxruntime", threads=1)
    answer = engine.segment(rgb)
    said = {"verified": found.right, "by": [row.backend for row in found.rows if row.right], "names": list(engine.vocabulary),
            "shown": int((answer.label_map > 0).sum())}  # fmt: skip
    return said, answer.masks


def opened_in_c(program: Path, bundle: Path, rgb: Any, names: tuple[str, ...], masks: Any) -> dict[str, Any]:
    """What the example program of the C library makes of a bundle: how many pixels of its masks are not the engine's."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(rgb).save(f"{folder}/picture.png")
        command = [program, bundle, f"{folder}/picture.png", f"{folder}/mask", *names]
        environment = {**os.environ, "DIGSEG_ONNXRUNTIME": str(library)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            return {"opened": False, "said": done.stderr.strip()}
        found = np.stack([np.asarray(Image.open(f"{folder}/mask.{k}.png")) > 0 for k in range(len(names))])
    return {"opened": True, "backend": done.stdout.splitlines()[-1], "pixels_of_masks": int(found.sum()),
            "pixels_not_as_in_python": int((found != masks).sum())}  # fmt: skip


def one(exporter: Exporter, name: str, precision: str, work: Path, program: Path | None) -> dict[str, Any]:
    """Export a vocabulary (OPEN: none), open it in both ways, and say what was found."""
    bundle = work / f"{name}-{precision}"
    if name == OPEN:
        exporter.export(bundle, precision, None)
        return {"bytes": size_of(bundle), "verified": verify_bundle(bundle).right}
    names = lists()[name]
    file = work / f"{name}.txt"
    file.write_text("\n".join(names) + "\n")
    done = exporter.export(bundle, precision, read_vocabulary(file))
    rgb = picture(name)
    python, masks = opened(bundle, rgb)
    row: dict[str, Any] = {"bytes": size_of(bundle), "verification": notes(done), "python": python}
    if program is not None:
        row["c"] = opened_in_c(program, bundle, rgb, names, masks)
    return row


def right(row: dict[str, Any]) -> bool:
    """Did a bundle pass everything that was asked of it?"""
    in_c = row.get("c")
    same = in_c is None or (in_c["opened"] and in_c["pixels_not_as_in_python"] == 0)
    return bool(row.get("python", row)["verified"] and same)


def started(path: Path, model: str) -> dict[str, Any]:
    """The rows that a file has of this model."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    return dict(kept["bundles"]) if kept.get("model") == model else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--native", type=Path, help="the C library's example program `segment`; without it C is left out"
    )
    parser.add_argument("--only", nargs="+", choices=sorted(lists()), help="these vocabularies (default: all)")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "int8"])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    model = sha256(BUNDLED / "student" / "model.safetensors")
    rows, exporter = started(options.output, model), None
    for precision in options.precisions:
        for name in (OPEN, *(options.only or lists())):
            if f"{name} {precision}" in rows:
                continue
            exporter = exporter or Exporter()
            work = Path(tempfile.mkdtemp(prefix="folded-bundles-"))
            try:
                row = one(exporter, name, precision, work, options.native)
            finally:
                shutil.rmtree(work)
            if name != OPEN:
                row["of_the_open_bundle"] = row["bytes"] / rows[f"{OPEN} {precision}"]["bytes"]
            rows[f"{name} {precision}"] = {"date": date.today().isoformat(), **row}
            body = {
                "command": "python benchmarks/folded_bundles.py --native kernels/build/examples/segment",
                "model": model,
                "hardware": f"{os.cpu_count()} cores, {processor()}",
                "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
                "bundles": rows,
            }
            options.output.write_text(json.dumps(body, indent=1) + "\n")
            print(f"{name} {precision}: {'right' if right(row) else 'NOT RIGHT'}", flush=True)
    return 0 if all(map(right, rows.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
