"""What an evaluation leaves: a JSON with every figure, a CSV with one line per name, a picture of telling samples."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from digseg_engine.evaluation.charts import draw_calibration, draw_confusion
from digseg_engine.evaluation.metrics import Scores
from digseg_engine.evaluation.panel import panel
from digseg_engine.evaluation.protocols import Trial
from digseg_engine.files import replacing, write_json


def write_report(path: Path, trials: list[Trial], scores: Mapping[str, Scores], about: dict[str, Any]) -> list[Path]:
    """Write `path` (.json), the same name with .csv and .png, and where they apply -confusion.png and -calibration.png;
    returns the paths."""
    path = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {**about, "iou": {name: outcome.together.iou() for name, outcome in scores.items()}}
    confusion = {
        name: outcome.together.confusion.tolist() for name, outcome in scores.items() if outcome.together.exclusive
    }
    if confusion:
        body["confusion"] = {"rows": "truth", "columns": "prediction", "last": "none of the names", **confusion}
    body["calibration"] = {
        name: {"error": outcome.together.calibration.error(), "bins": outcome.together.calibration.rows()}
        for name, outcome in scores.items()
    }
    write_json(path, _finite(body))
    table, picture = path.with_suffix(".csv"), path.with_suffix(".png")
    with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        _write_table(file, scores)
    with replacing(picture) as temporary:
        panel(trials, scores).save(temporary, format="PNG", optimize=True)
    charts = {"confusion": draw_confusion, "calibration": draw_calibration}
    drawn = [path.with_name(f"{path.stem}-{name}.png") for name in charts]
    return [path, table, picture, *(at for at, draw in zip(drawn, charts.values()) if draw(scores, at))]


def _write_table(file: TextIO, scores: Mapping[str, Scores]) -> None:
    """One line per trial and name."""
    rows = [
        {"set": name, **row, "iou_alone": alone["iou"]}
        for name, outcome in scores.items()
        for row, alone in zip(outcome.together.rows(), outcome.alone.rows())
    ]
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def _finite(value: Any) -> Any:
    """NaN, which JSON has not, becomes null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
