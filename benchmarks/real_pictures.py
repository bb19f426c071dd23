"""The bundled model on real pictures it never saw, as a picture: python -m benchmarks.real_pictures [--bundle DIR] [--output PNG]

Of the test split of every set the pictures at the median and at the lowest tenth of IoU are shown, so that nobody chose them:
an ordinary answer and a bad one. Sets: `nuclei` and `dubai` of $DIGSEG_REALDATA (docs/data.md says where the originals are);
both are CC0.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from digseg_engine import Engine
from digseg_engine.data.classes import IGNORE
from digseg_engine.data.datasets import open_dataset
from digseg_engine.files import replacing
from digseg_engine.named import SHIPPED_BUNDLE

ROOT = Path(__file__).resolve().parent.parent
SETS, PLACES = ("nuclei", "dubai"), {"median": 0.5, "lowest tenth": 0.1}
SIDE, LINE = 288, 18  # pixels


def iou(result: Any, ids: Any, classes: int) -> float:
    """Mean IoU of one picture over the classes in it, one label per pixel."""
    said, known = result.label_map - 1, ids != IGNORE
    found = []
    for k in range(classes):
        truth, mine = (ids == k) & known, (said == k) & known
        if truth.any():
            found.append((truth & mine).sum() / (truth | mine).sum())
    return float(np.mean(found)) if found else float("nan")


def shown(engine: Engine, folder: Path) -> list[tuple[str, float, Any]]:
    """(what it is, IoU, overlay) of the set's pictures at `PLACES`."""
    dataset = open_dataset(folder, split="test")
    prompts = [query.text for query in dataset.queries]
    scored = []
    for i in range(len(dataset)):
        item = dataset[i]
        result = engine.segment(item.image, prompts)
        scored.append((iou(result, item.ids, len(prompts)), i))
    scored = sorted(pair for pair in scored if pair[0] == pair[0])
    rows = []
    for name, share in PLACES.items():
        value, i = scored[round(share * (len(scored) - 1))]
        rows.append(
            (f"{folder.name}, {name}: IoU {value:.2f}", value, engine.segment(dataset[i].image, prompts).overlay())
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "real.png")
    given = parser.parse_args()
    real = os.environ.get("DIGSEG_REALDATA")
    if real is None or not all((Path(real) / name).is_dir() for name in SETS):
        raise SystemExit(
            f"set DIGSEG_REALDATA to a folder with the data sets {', '.join(SETS)} in the layout of docs/data.md"
        )
    with Engine.load(given.bundle, backend="onnxruntime") as engine:
        rows = [row for name in SETS for row in shown(engine, Path(real) / name)]
    sheet = Image.new("RGB", (SIDE * len(rows) + 8 * (len(rows) - 1), SIDE + LINE), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, value, overlay) in enumerate(rows):
        overlay.thumbnail((SIDE, SIDE))
        sheet.paste(overlay, (i * (SIDE + 8), LINE))
        draw.text((i * (SIDE + 8), 2), title, fill="black")
        print(json.dumps({"picture": title, "iou": round(value, 3)}))
    with replacing(given.output) as temporary:
        sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(temporary, format="png", optimize=True)


if __name__ == "__main__":
    main()
