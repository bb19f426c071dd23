"""What an evaluation leaves: a JSON with every figure, a CSV with one line per name, a picture of telling samples."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.evaluation.metrics import Scores
from digseg_engine.evaluation.panel import panel
from digseg_engine.evaluation.predictors import Predict
from digseg_engine.evaluation.protocols import Samples


def write_report(
    path: Path, sets: list[Samples], scores: Mapping[str, Scores], predict: Predict, about: dict[str, Any]
) -> list[Path]:
    """Write `path` (.json), the same name with .csv and .png; returns the three paths."""
    path = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {**about, "iou": {name: both.together.iou() for name, both in scores.items()}}
    confusion = {name: both.together.confusion.tolist() for name, both in scores.items() if both.together.exclusive}
    if confusion:
        body["confusion"] = {"rows": "truth", "columns": "prediction", "last": "none of the names", **confusion}
    path.write_text(json.dumps(_finite(body), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    table = path.with_suffix(".csv")
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = [
            {"set": name, **row, "iou_alone": alone["iou"]}
            for name, both in scores.items()
            for row, alone in zip(both.together.rows(), both.alone.rows())
        ]
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    picture = path.with_suffix(".png")
    panel(sets, scores, predict).save(picture, optimize=True)
    return [path, table, picture]


def _finite(value: Any) -> Any:
    """NaN, which JSON has not, becomes null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
