"""What `refine` gains or costs in IoU: `python benchmarks/refine.py --bundle digseg-tiny-fp16 --checkpoint DIR`.

Test scenes of every domain, asked for what is in them; mean IoU of the masks as the student gives them, and after the
reference went over all of them in 1, 2 and 4 steps, with the seconds per picture. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine import Engine
from digseg_engine.model.pretrained import BUNDLED
from digseg_engine.runtime.choice import pair_iou
from digseg_engine.runtime.machine import device_key
from digseg_engine.worlds.scenes import DOMAINS, Scene, scene

RESULTS = Path(__file__).resolve().parent / "results"
TEST_SEED = 3_000_000


def score(engine: Engine, scenes: list[Scene], steps: int) -> dict[str, float]:
    """Mean IoU over all masks and seconds per picture; steps 0 is the student alone."""
    ious, seconds = [], 0.0
    for one in scenes:
        names = one.names()
        began = time.perf_counter()
        found = engine.segment(one.image, names, refine=len(names) if steps else 0, steps=max(steps, 1))
        seconds += time.perf_counter() - began
        truth = np.stack([one.mask(name) for name in names])
        ious += pair_iou(found.masks[None], truth[None]).tolist()
    return {"miou": float(np.mean(ious)), "masks": len(ious), "seconds_per_picture": seconds / len(scenes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("digseg-tiny-fp16"))
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED, help="what the bundle was exported from")
    parser.add_argument("--count", type=int, default=50, help="scenes per domain")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 1, 2, 4], help="0 is the student alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "refine.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with Engine.load(options.bundle, "onnxruntime", checkpoint=options.checkpoint) as engine:
        size = engine.image_size
        for domain in DOMAINS:
            scenes = [scene(TEST_SEED + i, domain, size, "test") for i in range(options.count)]
            for steps in options.steps:
                rows.append({"domain": domain, "steps": steps, **score(engine, scenes, steps)})
                print(json.dumps(rows[-1]), flush=True)
    body = {"bundle": options.bundle.name, "scenes_per_domain": options.count, "machine": device_key(), "rows": rows}
    options.output.write_text(json.dumps(body, indent=2) + "\n")


if __name__ == "__main__":
    main()
