"""The picture of an evaluation: one row per trial; its best, median and worst sample as picture, truth, prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from digseg_engine.evaluation.answers import Answer
from digseg_engine.evaluation.metrics import Scores
from digseg_engine.evaluation.predictors import decide
from digseg_engine.evaluation.protocols import Trial
from digseg_engine.runtime.saving import PALETTE

CELL, GAP, LINE = 128, 6, 15  # pixels: a view, the space between, a line of text
GROUP = 3 * CELL + 2 * 2  # a sample's three views, two pixels apart
LEGEND = 2  # lines of names under a sample
COLOURS = 256  # of the picture: a quarter of the file, and nothing to see of it
FONT = ImageFont.load_default(11)


def panel(trials: Sequence[Trial], scores: Mapping[str, Scores]) -> Image.Image:
    """The grid of all trials (see `sheet`), reduced to a palette so that the file stays small."""
    return sheet(trials, scores).quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def sheet(trials: Sequence[Trial], scores: Mapping[str, Scores]) -> Image.Image:
    """The grid of all trials in full colour: a row for each with its best, median and worst sample."""
    height = 2 * LINE + CELL + LEGEND * LINE + GAP
    grid = Image.new("RGB", (3 * (GROUP + 2 * GAP), GAP + len(trials) * height), "white")
    draw = ImageDraw.Draw(grid)
    for row, trial in enumerate(trials):
        samples, score, top = trial.samples, scores[trial.name].together, GAP + row * height
        draw.text((GAP, top), f"{trial.name}: picture, truth, prediction", "black", FONT)
        for column, (label, i) in enumerate(score.best_median_worst().items()):
            sample = samples[i]
            answer = Answer.of(trial.predict(sample.image, [query.text for query in samples.queries]))
            predicted = decide(answer, samples.rule)
            visible = np.flatnonzero(sample.truth.any((1, 2)) | predicted.any((1, 2)))
            views = [sample.image, *(tinted(sample.image, masks, visible) for masks in (sample.truth, predicted))]
            left, title = GAP + column * (GROUP + 2 * GAP), f"{label}: {sample.name}, IoU {score.per_picture[i]:.3f}"
            draw.text((left, top + LINE), title, "black", FONT)
            for n, view in enumerate(views):
                grid.paste(_fitted(view), (left + n * (CELL + 2), top + 2 * LINE))
            _legend(draw, left, top + 2 * LINE + CELL + 2, [score.names[int(k)] for k in visible])
    return grid


def tinted(image: NDArray[np.uint8], masks: NDArray[np.bool_], visible: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Masks [K, H, W] laid over the picture, the n-th shown one in the n-th colour."""
    canvas = image.astype(np.float32) * 0.55
    for n in np.argsort(-masks[visible].sum((1, 2)), kind="stable"):  # small masks last, so that a large one hides none
        k = visible[n]
        canvas[masks[k]] = 0.35 * image[masks[k]] + 0.65 * np.array(PALETTE[n % len(PALETTE)], np.float32)
    return canvas.astype(np.uint8)


def _fitted(view: NDArray[np.uint8]) -> Image.Image:
    """A view with its longer side at `CELL` pixels."""
    picture = Image.fromarray(view)
    scale = CELL / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _legend(draw: ImageDraw.ImageDraw, left: int, top: int, names: list[str]) -> None:
    """Names in their colours, filled line by line; what does not fit is counted."""
    x, line = left, 0
    for n, name in enumerate(names):
        width = 12 + int(draw.textlength(name, FONT)) + 8
        keeps_place = line + 1 == LEGEND and n + 1 < len(names)  # the last line, for "+ 9"
        free_width = GROUP - (40 if keeps_place else 0)
        if x > left and x + width > left + free_width:
            x, line = left, line + 1
        if line == LEGEND:
            draw.text((left + GROUP - 30, top + (LEGEND - 1) * LINE), f"+ {len(names) - n}", "black", FONT)
            return
        y = top + line * LINE
        draw.rectangle((x, y + 3, x + 8, y + 11), fill=PALETTE[n % len(PALETTE)])
        draw.text((x + 12, y), name, "black", FONT)
        x += width
