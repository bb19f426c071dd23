"""An int8 bundle beside the float one on a CPU, backend by backend: milliseconds from pixels to masks, and what int8 costs.

    digseg-export --precision int8 -o int8
    python benchmarks/int8_cpu.py digseg_engine/assets/digseg-tiny-fp16 int8 --data FOLDER ...

Every pair of bundle and backend is an engine of one thread; they take turns call by call, so that other work on the machine meets
them alike. Quality: mean IoU of both bundles on the test splits of the folders, under the first of the backends that compute int8
in integers. The profile is OpenVINO's own of the graph that takes the time, by what it calls the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from digseg_engine import Engine
from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER, TEXT_ENCODER
from digseg_engine.evaluation.predictors import bundle_predictor
from digseg_engine.evaluation.protocols import LabelledPictures
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import write_json
from digseg_engine.runtime.backends.openvino_backend import VARIANTS, core, settings
from digseg_engine.runtime.machine import library_versions, processor
from digseg_engine.working_size import working_size

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path(__file__).resolve().parent / "results" / "int8-cpu.json"
PICTURE = ROOT / "examples" / "aerial.png"
BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")
INTEGERS = "openvino"  # multiplies int8 as integers where the processor can
NAMES = [f"{a} {b}" for a in ("red", "green", "blue", "grey", "large") for b in ("road", "house", "field", "lake")]
PROFILED = 10  # runs


def in_turns(
    engines: dict[tuple[str, str], Engine], size: int, prompts: Sequence[int], runs: int
) -> list[dict[str, Any]]:
    """Medians of all engines by number of prompts, and each int8 one over the float one of its backend."""
    pixels, rows = np.asarray(Image.open(PICTURE).convert("RGB")), []
    for count in prompts:
        taken: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
        for run in range(runs + 2):
            for key, engine in engines.items():
                began = time.perf_counter()
                engine.segment(pixels, NAMES[:count], size=size, all_prompts=True)
                if run >= 2:
                    taken[key].append(1000 * (time.perf_counter() - began))
        medians = {key: statistics.median(own) for key, own in taken.items()}
        for (kind, backend), ms in medians.items():
            row = {"prompts": count, "bundle": kind, "backend": backend, "ms": round(ms, 2)}
            faster = {} if kind == "float" else {"float_over_int8": round(medians["float", backend] / ms, 3)}
            rows.append({**row, **faster})
    return rows


def profile(bundle: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of every graph by kernel, the largest ten, of the bundle's golden picture."""
    feeds = load_file(str(bundle / "golden.safetensors"))
    found: dict[str, dict[str, float]] = {}
    for spec in (TEXT_ENCODER, IMAGE_ENCODER, MASK_DECODER):
        properties = {**settings(VARIANTS[INTEGERS], 1), "PERF_COUNT": "YES"}
        graph = core().compile_model(str(bundle / spec.file), "CPU", properties)
        request = graph.create_infer_request()
        spent: dict[str, float] = defaultdict(float)
        own = {name: feeds[name] for tensor in graph.inputs for name in tensor.names if name in feeds}
        request.infer(own)  # warms up
        for _ in range(PROFILED):
            request.infer(own)
            for node in request.profiling_info:
                spent[f"{node.node_type} ({node.exec_type})"] += node.real_time.total_seconds() * 1000 / PROFILED
        for output, tensor in zip(graph.outputs, request.output_tensors):
            feeds |= dict.fromkeys(output.names, np.array(tensor.data))
        found[spec.file] = {name: round(ms, 2) for name, ms in sorted(spent.items(), key=lambda item: -item[1])[:10]}
    return found


def points(bundle: Path, folders: Sequence[Path]) -> dict[str, float]:
    """Mean IoU in points on the test split of every folder, at the working size that the bundle takes by itself."""
    size = working_size(json.loads((bundle / "manifest.json").read_text(encoding="utf-8")))
    predict = bundle_predictor(bundle, size, backend=INTEGERS)
    samples = {folder.name: LabelledPictures(folder, split="test") for folder in folders}
    return {name: round(100 * evaluate(predict, own).together.miou(), 2) for name, own in samples.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("float", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="folders of labelled pictures with a test split"
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    bundles = {"float": given.float, "int8": given.int8}
    engines = {
        (kind, name): Engine.load(bundle, name, threads=1) for name in BACKENDS for kind, bundle in bundles.items()
    }
    rows = in_turns(engines, given.size, given.prompts, given.runs)
    scored = {kind: points(bundle, given.data) for kind, bundle in bundles.items()}
    lost = {name: round(scored["float"][name] - scored["int8"][name], 2) for name in scored["float"]}
    left = json.loads((given.int8 / "precision.json").read_text())["graphs"]
    write_json(given.output, {
        "size": given.size, "threads": 1, "runs": given.runs, "rows": rows, "points": scored, "points_lost": lost,
        "quantised_layers": {file: [one["quantised"], len(one.get("left_out", {}))] for file, one in left.items()},
        "profile_ms": {kind: profile(bundle) for kind, bundle in bundles.items()}, "versions": library_versions(),
        "load": os.getloadavg(), "processor": processor(), "date": str(date.today()),
    })  # fmt: skip
    for row in rows:
        print(json.dumps(row))
    print(json.dumps({"points": scored, "lost": lost}))


if __name__ == "__main__":
    main()
