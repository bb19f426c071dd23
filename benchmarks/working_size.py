"""At how many pixels the bundled model should work: mean IoU of several rules for the working size, by set and split.

    python benchmarks/working_size.py --data FOLDER ...

A rule LEAST-MOST works a picture at its own longer side, but at least at LEAST and at most at MOST pixels. Decisions are made on
the validation split; the test split is measured in the same run for the record. `seconds` is the time of the whole split, one
picture after the other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from digseg_engine.evaluation.predictors import bundle_predictor
from digseg_engine.evaluation.protocols import LabelledPictures
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import write_json
from digseg_engine.model.folder import BUNDLED
from digseg_engine.runtime.machine import processor
from digseg_engine.working_size import WorkingSize

RESULTS = Path(__file__).resolve().parent / "results"
RULES = ("256-256", "256-384", "384-384", "256-512")


def measure(bundle: Path, folder: Path, split: str, rule: str) -> dict[str, Any]:
    """One row: the bundle on a split of a set, by a rule."""
    least, most = map(int, rule.split("-"))
    predict = bundle_predictor(bundle, WorkingSize(least, most))
    pictures = LabelledPictures(folder, count=0, split=split)
    began = time.perf_counter()
    score = evaluate(predict, pictures).together.miou()
    return {"set": folder.name, "split": split, "rule": rule, "pictures": len(pictures), "miou": round(score, 4),
            "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders with val.txt and test.txt (docs/data.md)"
    )
    parser.add_argument("--bundle", type=Path, default=BUNDLED.with_name(f"{BUNDLED.name}-fp16"))
    parser.add_argument("--rules", nargs="+", default=list(RULES), help="LEAST-MOST pixels")
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--output", type=Path, default=RESULTS / "working-size.json")
    given = parser.parse_args(arguments)
    rows = []
    for folder in given.data:
        for split in given.splits:
            for rule in given.rules:
                rows.append(measure(given.bundle, folder, split, rule))
                print(json.dumps(rows[-1]), flush=True)
    write_json(
        given.output, {"bundle": given.bundle.name, "rows": rows, "processor": processor(), "date": str(date.today())}
    )


if __name__ == "__main__":
    main()
