"""What an evaluation leaves: a JSON with every figure, a CSV with one line per name, a picture of telling samples."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from digseg_engine.evaluation.metrics import Scores
from digseg_engine.evaluation.predictors import Predict, decide
from digseg_engine.evaluation.samples import Samples
from digseg_engine.runtime.result import PALETTE

CELL = 192  # pixels of a panel cell
MARGIN, LINE = 8, 18


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
    panel(sets, scores, predict).save(picture)
    return [path, table, picture]


def _finite(value: Any) -> Any:
    """NaN, which JSON has not, becomes null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def panel(sets: list[Samples], scores: Mapping[str, Scores], predict: Predict) -> Image.Image:
    """Picture, truth and prediction of the best, the median and the worst sample of every set."""
    strips = []
    for samples in sets:
        score = scores[samples.name].together
        for label, i in score.best_median_worst().items():
            one = samples[i]
            predicted = decide(predict(one.image, [query.text for query in samples.queries]), samples.rule)
            title = f"{samples.name}, {label}: {one.name}, IoU {score.per_picture[i]:.3f}"
            shown = np.flatnonzero(one.truth.any((1, 2)) | predicted.any((1, 2)))
            views = [one.image, *(tinted(one.image, masks, shown) for masks in (one.truth, predicted))]
            strips.append(_strip(title, views, [score.names[int(k)] for k in shown]))
    height = sum(strip.height for strip in strips) + MARGIN
    sheet = Image.new("RGB", (max((strip.width for strip in strips), default=CELL), height), "white")
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def tinted(image: NDArray[np.uint8], masks: NDArray[np.bool_], shown: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Masks [K, H, W] laid over the picture, the n-th shown one in the n-th colour."""
    canvas = image.astype(np.float32) * 0.55
    for n in np.argsort(-masks[shown].sum((1, 2)), kind="stable"):  # small masks last, so that a large one hides none
        k = shown[n]
        canvas[masks[k]] = 0.35 * image[masks[k]] + 0.65 * np.array(PALETTE[n % len(PALETTE)], np.float32)
    return canvas.astype(np.uint8)


def _strip(title: str, views: list[NDArray[np.uint8]], names: list[str]) -> Image.Image:
    """One line of the panel: title, three views, legend."""
    font, wide = ImageFont.load_default(13), 3 * (CELL + MARGIN) + 190
    strip = Image.new("RGB", (wide, CELL + LINE + MARGIN), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, 0), title, "black", font)
    for n, view in enumerate(views):
        picture = Image.fromarray(view)
        picture = picture.resize(_inside(picture), Image.Resampling.BILINEAR)
        strip.paste(picture, (MARGIN + n * (CELL + MARGIN), LINE))
    for n, name in enumerate(names[: CELL // LINE]):
        left, top = 3 * (CELL + MARGIN) + MARGIN, LINE + n * LINE
        draw.rectangle((left, top + 2, left + 12, top + 14), fill=PALETTE[n % len(PALETTE)])
        draw.text((left + 18, top), name, "black", font)
    return strip


def _inside(picture: Image.Image) -> tuple[int, int]:
    scale = CELL / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
