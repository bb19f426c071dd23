"""The runtime on a CPU, in ratios taken within one run: `python benchmarks/cpu_runtime.py --fp16 DIR --fp32 DIR`.

1. time(K) / time(1) for K prompts about one picture, with one pass per prompt (K calls of one prompt) beside it;
2. the fp16 bundle against the fp32 bundle, calls taken in turns, and the IoU of their masks;
3. from process start to the first mask on disk, against `python -c "import numpy, PIL, onnxruntime"`.
Medians. Writes JSON and a picture; `--output` chooses where. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from digseg_engine import Engine
from digseg_engine.runtime.timing import in_turns

RESULTS = Path(__file__).resolve().parent / "results"
IMPORTS = "import numpy, PIL, onnxruntime"


def medians(
    calls: dict[str, Callable[[], object]], runs: int, warm_up: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median milliseconds of every call; the calls take turns, so that a busy moment hits all of them."""
    return {name: 1000 * statistics.median(values) for name, values in in_turns(calls, runs, warm_up, clock).items()}


def prompt_scaling(bundle: Path, size: int, counts: list[int], runs: int) -> dict[str, Any]:
    """Milliseconds of the model step for K prompts, and of K separate passes."""
    engine = Engine.load(bundle, "onnxruntime")
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    prompts = [f"thing {i}" for i in range(max(counts))]
    engine.logits(pixels, prompts)
    ms = medians({str(k): lambda k=k: engine.logits(pixels, prompts[:k]) for k in counts}, runs)
    ratios = {k: ms[k] / ms[str(counts[0])] for k in ms}
    singles = {k: int(k) * ms[str(counts[0])] for k in ms}
    few = min(counts[1:], default=1)
    measured = medians({"each": lambda: [engine.logits(pixels, [p]) for p in prompts[:few]]}, max(1, runs // 3), 1)[
        "each"
    ]
    return {"size": size, "ms": ms, "ratio_to_one_prompt": ratios, "one_pass_per_prompt_ms": singles,
            f"one_pass_per_prompt_measured_{few}_ms": measured}  # fmt: skip


def precisions(fp16: Path, fp32: Path, size: int, runs: int) -> dict[str, Any]:
    """The fp16 bundle's time over the fp32 bundle's, and the IoU of their masks."""
    engines = {"fp16": Engine.load(fp16, "onnxruntime"), "fp32": Engine.load(fp32, "onnxruntime")}
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 255, (size // 8, size // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    prompts = ["anything blue", "something that is green", "red things", "black"]
    ms = medians({name: lambda e=e: e.segment(picture, prompts, size).masks for name, e in engines.items()}, runs)
    masks = [engine.segment(picture, prompts, size).masks for engine in engines.values()]
    union = (masks[0] | masks[1]).sum()
    return {"size": size, "ms": ms, "fp16_over_fp32": ms["fp16"] / ms["fp32"],
            "mask_iou": float((masks[0] & masks[1]).sum() / union) if union else 1.0}  # fmt: skip


def cold_start(bundle: Path, runs: int) -> dict[str, Any]:
    """Seconds from process start to the first mask on disk, and of the imports alone; file caches are warm."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(picture)
        ours = [sys.executable, "-m", "digseg_engine", "segment", str(picture), "-p", "water", "-b", str(bundle.resolve()),
                "-o", str(Path(folder) / "out")]  # fmt: skip
        environment = {**os.environ, "DIGSEG_CACHE": str(Path(folder) / "cache")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        began = time.perf_counter()
        subprocess.run(ours, check=True, capture_output=True, env=environment)
        first = time.perf_counter() - began
        calls = {
            "imports": lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True, env=environment),
            "segment": lambda: subprocess.run(ours, check=True, capture_output=True, env=environment),
        }
        ms = medians(calls, runs, 1)
    engine = Engine.load(bundle, "onnxruntime", pictures=1)  # what the command runs for one picture
    blank = np.zeros((128, 128, 3), np.uint8)
    inference = medians({"one": lambda: engine.segment(blank, ["water"])}, runs)["one"]
    return {"imports_ms": ms["imports"], "segment_ms": ms["segment"], "very_first_ms": 1000 * first,
            "inference_ms": inference, "ratio_without_inference": (ms["segment"] - inference) / ms["imports"]}  # fmt: skip


def draw(figures: dict[str, Any], path: Path) -> None:
    """Time against number of prompts, with one pass per prompt for comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scaling = figures["prompts"]
    counts = [int(k) for k in scaling["ms"]]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(counts, list(scaling["ms"].values()), "o-", label="all prompts in one pass")
    axes.plot(counts, list(scaling["one_pass_per_prompt_ms"].values()), "s--", label="one pass per prompt (K x one)")
    axes.set(xlabel="prompts", ylabel="milliseconds (median)", xscale="log", yscale="log",
             title=f"CPU, {scaling['size']} px, {figures['machine']['processor']}")  # fmt: skip
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fp16", type=Path, default=Path("digseg-tiny-fp16"))
    parser.add_argument("--fp32", type=Path, default=Path("digseg-tiny-fp32"))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 20, 150])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu-runtime.json")
    options = parser.parse_args()
    from digseg_engine.runtime.machine import device_key

    figures: dict[str, Any] = {
        "machine": {**device_key(), "system": platform.system(), "load_before": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("onnxruntime", "numpy", "pillow", "tokenizers")},
        "model": {"fp16": options.fp16.name, "fp32": options.fp32.name},
    }
    figures["prompts"] = prompt_scaling(options.fp16, options.size, options.prompts, options.runs)
    figures["precision"] = precisions(options.fp16, options.fp32, options.size, options.runs)
    figures["cold_start"] = cold_start(options.fp16, options.runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    draw(figures, options.output.with_suffix(".png"))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
