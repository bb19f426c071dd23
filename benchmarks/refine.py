"""What a checkpoint's reference and `refine` reach: `python benchmarks/refine.py [--checkpoint DIR] [--data DATA] [--write]`.

Test scenes of every domain, asked for all that is in them, or held-out pictures of --data; mean IoU per mask of the parts that
`evaluation.quality` asks, which measures at the end of every training run too. Prints and writes JSON; --write also puts the
means into the checkpoint's quality.json, by which the engine allows `refine`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from digseg_engine.evaluation.protocols import open_samples
from digseg_engine.evaluation.quality import Case, Rows, cases_of, means, measure
from digseg_engine.files import write_json
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.quality import write_quality
from digseg_engine.runtime.machine import device_key
from digseg_engine.worlds.scenes import DOMAINS, scene

RESULTS = Path(__file__).resolve().parent / "results"
TEST_SEED = 3_000_000
EMPTY = 4  # times as many pictures are opened: what is asked for may be in none of some


def scene_cases(domain: str, count: int, size: int) -> Iterator[Case]:
    """Test scenes that no other figure is made on, each asked for everything that is in it."""
    for i in range(count):
        one = scene(TEST_SEED + i, domain, size, "test")
        names = one.names()
        yield Case(one.image, names, np.stack([one.mask(name) for name in names]), seed=one.seed)


def data_cases(data: str, count: int, size: int) -> Iterator[Case]:
    """Held-out pictures of a folder or of shards, as a training run takes them."""
    return cases_of(open_samples(data, EMPTY * count, size), count)


def measure_all(checkpoint: Checkpoint, data: str | None, count: int) -> dict[str, Rows]:
    """IoU of every mask by domain (or data) and part."""
    size, found = checkpoint.config.image_size, {}
    names = DOMAINS if data is None else [Path(data).name]
    for name in names:
        cases = scene_cases(name, count, size) if data is None else data_cases(data, count, size)
        rows = found[name] = measure(checkpoint, cases)
        means_of = {part: round(float(np.mean(values)), 4) for part, values in rows.items()}
        print(json.dumps({"domain" if data is None else "data": name, **means_of}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--data", help="labelled pictures instead of scenes: a folder or shards (their held-out split)")
    parser.add_argument("--count", type=int, default=10, help="scenes per domain, or pictures of --data")
    parser.add_argument("--write", action="store_true", help="write the means into the checkpoint's quality.json")
    parser.add_argument("--output", type=Path, default=RESULTS / "refine.json")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    found = measure_all(checkpoint, options.data, options.count)
    whole = {part: [iou for rows in found.values() for iou in rows[part]] for part in next(iter(found.values()))}
    scenes = options.data is None
    words = f"--count {options.count} --write" if scenes else f"--data {options.data} --count {options.count} --write"
    measured = {"on": "generated test scenes of every domain" if scenes else f"held-out pictures of {next(iter(found))}",
                "scenes" if scenes else "pictures": options.count * len(found),
                "pixels": checkpoint.config.image_size, "command": f"python benchmarks/refine.py {words}"}  # fmt: skip
    total = means(whole, measured)
    rows = [{"domain": domain, "masks": len(rows["student"]), **{name: float(np.mean(x)) for name, x in rows.items()}}
            for domain, rows in found.items()]  # fmt: skip
    write_json(options.output, {"checkpoint": options.checkpoint.name, "machine": device_key(), "torch": torch.__version__,
                                "means": dict(vars(total)), "rows": rows})  # fmt: skip
    print(json.dumps(vars(total)))
    if options.write:
        write_quality(options.checkpoint, total)


if __name__ == "__main__":
    main()
