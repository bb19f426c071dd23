"""TensorRT-RTX plans at the full size of Stable Diffusion 2.1, random weights: python benchmarks/tensorrt_rtx_large.py

1. A random checkpoint of the `sd21` preset is exported to a bundle in fp16, as `export_large.py` does it (--bundle: a ready one).
2. `digseg-export --bundle BUNDLE --format tensorrt-rtx` runs as a user types it. Seconds and peak memory are those of the
   whole process; bytes of plans against bytes of weights say what the plan format adds.
Nothing is run: that takes an RTX GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from export_large import processor, run_measured

RESULT = Path(__file__).parent / "results" / "tensorrt-rtx-sd21.json"
CALL = "from digseg_export.cli import main; main()"


def export(work: Path, preset: str) -> Path:
    """The bundle of a random checkpoint."""
    bundle = work / "bundle"
    checkpoint = work / "checkpoint"
    if not checkpoint.exists():
        checkpoint.mkdir(parents=True)
        script = str(Path(__file__).with_name("export_large.py"))
        run_measured(sys.executable, script, "--work", str(work), "--preset", preset, "--step", "make")
    if not bundle.exists():
        run_measured(sys.executable, "-c", CALL, str(checkpoint), "--precision", "fp16", "-o", str(bundle), "--json")
    return bundle


def main() -> int:
    """Export (or take a bundle), build, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("rtx-sd21"), help="folder for 10 GB of files, removed after")
    parser.add_argument("--preset", default="sd21")
    parser.add_argument("--bundle", type=Path, help="a ready bundle instead")
    parser.add_argument("--compute-capability", default="75,80,86,89,120")
    parser.add_argument("--keep", action="store_true", help="leave what was made in the folder")
    parser.add_argument("--output", type=Path, default=RESULT)
    typed = parser.parse_args()
    typed.work.mkdir(parents=True, exist_ok=True)
    bundle = typed.bundle or export(typed.work, typed.preset)
    plans = typed.work / "plans"
    asked = ["--format", "tensorrt-rtx", "--compute-capability", typed.compute_capability, "--engines", str(plans)]
    seconds, peak, said = run_measured(sys.executable, "-c", CALL, "--bundle", str(bundle), *asked, "--json", "--quiet")
    made = json.loads(said)["plans"]
    weights, sizes = (sum(row[name] for row in made["rows"]) for name in ("weights", "plan"))
    result = {
        "command": "python benchmarks/tensorrt_rtx_large.py", "date": date.today().isoformat(), "preset": typed.preset,
        "library": f"tensorrt-rtx {made['library']}", "targets": made["targets"], "graphs": made["rows"],
        "build": {"seconds": round(seconds, 1), "peak_gb": round(peak, 2), "weights_bytes": weights, "plan_bytes": sizes,
                  "plan_over_weights": round(sizes / weights, 3)},
        "hardware": f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} usable, {processor()}",
        "versions": {name: version(name) for name in ("onnx", "numpy")}, "run": "not run: no RTX GPU",
    }  # fmt: skip
    typed.output.write_text(json.dumps(result, indent=1) + "\n")
    if not typed.keep:
        shutil.rmtree(typed.work)
    print(f"{seconds:.0f} s, peak {peak:.2f} GB, plans {sizes / weights:.2f} x the weights; wrote {typed.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
