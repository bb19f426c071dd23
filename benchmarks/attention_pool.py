"""What the student's self-attention loses, and saves, when it looks at averages of 2 x 2 cells, without any training for it.

    python benchmarks/attention_pool.py --data FOLDER ...

The bundled checkpoint with and without `attention_pool`, in turns, on validation pictures of folders and on painted test scenes:
mean IoU with one label per pixel (no presence), and processor time of PyTorch for all of a set's pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures, Samples, TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import write_json
from digseg_engine.model.folder import find_start
from digseg_engine.model.pretrained import Checkpoint, load_checkpoint, with_attention_pool
from digseg_engine.runtime.machine import processor
from digseg_engine.worlds.scenes import DOMAINS

RESULTS = Path(__file__).resolve().parent / "results"


def measure(checkpoint: Checkpoint, samples: Samples, size: int | None) -> dict[str, Any]:
    began = time.process_time()
    score = evaluate(student_predictor(checkpoint, size, readout=False), samples).together.miou()
    return {"miou": round(score, 4), "cpu_seconds": round(time.process_time() - began, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders with val.txt (docs/data.md)")
    parser.add_argument("--checkpoint", default="digseg-tiny")
    parser.add_argument("--count", type=int, default=16, help="pictures of every set")
    parser.add_argument("--output", type=Path, default=RESULTS / "attention-pool.json")
    given = parser.parse_args(arguments)
    whole = load_checkpoint(find_start(given.checkpoint))
    sides = {pool: with_attention_pool(whole, pool) for pool in (1, 2)}
    sets: list[tuple[Samples, int | None]] = [
        (LabelledPictures(f, count=given.count, split="val"), None) for f in given.data
    ]
    sets += [(TestScenes(domain, given.count, size), size) for size in (256, 128) for domain in DOMAINS]
    names = [f.name for f in given.data] + [f"{domain}, {size} px" for size in (256, 128) for domain in DOMAINS]
    rows = []
    for name, (samples, size) in zip(names, sets):
        for pool, checkpoint in sides.items():
            rows.append({"set": name, "attention_pool": pool, **measure(checkpoint, samples, size)})
            print(json.dumps(rows[-1]), flush=True)
    write_json(given.output, {"checkpoint": given.checkpoint, "count": given.count, "rows": rows, "processor": processor(),
                              "date": str(date.today())})  # fmt: skip


if __name__ == "__main__":
    main()
