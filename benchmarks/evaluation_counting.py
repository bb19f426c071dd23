"""What counting costs in `digseg eval`: CPU seconds beside the model's, and the figures against mmsegmentation's rule.

    python benchmarks/evaluation_counting.py                # 2,000 pictures x 150 classes, as ADE20K's validation split
    python benchmarks/evaluation_counting.py --pictures 50

Pictures are generated label maps of about 683 x 512 pixels with some ten classes each; the "model" answers the truth at a
quarter of a working size of 512 pixels with noise on it. Its time and that of making the pictures are taken off. The first
pictures are counted a second time by the rule of mmsegmentation's `intersect_and_union` (histograms of the labels over
full-size logits), in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digseg_engine.data.query import Query
from digseg_engine.evaluation.answers import Answer, View
from digseg_engine.evaluation.protocols import Sample
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import write_json
from digseg_engine.images import Frame
from digseg_engine.runtime.machine import device_key

RESULTS = Path(__file__).resolve().parent / "results" / "evaluation-counting.json"
CLASSES, PRESENT, BLOBS = 150, 10, 24
SIZES = ((512, 683), (683, 512), (512, 768), (600, 800))
WORKING, CELL = 512, 4
IGNORE = -1


class Generated:
    """A test set of label maps: some ten classes in ellipses over one that fills the ground."""

    name, rule, notes = "generated", "strongest", ()
    queries = tuple(Query(f"class {k}", f"class {k}") for k in range(CLASSES))

    def __init__(self, count: int) -> None:
        self.count, self.seconds = count, 0.0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        began = time.process_time()
        rng = np.random.default_rng(i)
        height, width = SIZES[i % len(SIZES)]
        present = rng.choice(CLASSES, PRESENT, replace=False)
        labels = np.full((height, width), present[0], np.int16)
        rows, columns = np.ogrid[:height, :width]
        for k in rng.choice(present, BLOBS):
            y, x, a, b = rng.uniform(0, (height, width, height / 3, width / 3))
            labels[((rows - y) / (a + 4)) ** 2 + ((columns - x) / (b + 4)) ** 2 < 1] = k
        labels[:, : int(rng.integers(0, 12))] = IGNORE
        image = np.full((height, width, 3), i % 256, np.uint8)
        image[0, :4, 0] = np.frombuffer(np.uint32(i).tobytes(), np.uint8)  # so that the model knows which one it is
        self.seconds += time.process_time() - began
        return Sample(str(i), image, None, labels != IGNORE, labels, CLASSES)


class Model:
    """Answers the truth with noise on it, from labels reduced to cells."""

    def __init__(self, samples: Generated) -> None:
        self.samples, self.seconds = samples, 0.0

    def __call__(self, image: Any, prompts: list[str]) -> Answer:
        began, other = time.process_time(), self.samples.seconds
        i = int(np.frombuffer(image[0, :4, 0].tobytes(), np.uint32)[0])
        labels = self.samples[i].labels
        self.samples.seconds = other
        assert labels is not None
        height, width = labels.shape
        scale = WORKING / max(height, width)
        content = round(height * scale), round(width * scale)
        cells = -(-content[0] // CELL), -(-content[1] // CELL)
        at = [
            np.minimum((np.arange(n) * CELL + CELL // 2) / scale, side - 1).astype(int)
            for n, side in zip(cells, (height, width))
        ]
        coarse = torch.from_numpy(labels[np.ix_(*at)].astype(np.int64)).clamp(min=0)
        noise = torch.randn(CLASSES, *cells, generator=torch.Generator().manual_seed(i))
        planes = 2 * noise - 4
        planes.scatter_add_(0, coarse[None], torch.full((1, *cells), 7.0))
        frame = Frame((cells[0] * CELL, cells[1] * CELL), content, (height, width))
        self.seconds += time.process_time() - began
        return Answer((height, width), (View.of_frame(planes, frame),))


def histogram_rule(samples: Generated, model: Model, count: int) -> tuple[Any, float]:
    """IoU of every class by histograms, and the CPU seconds it took."""
    bins = np.arange(CLASSES + 1)
    both, predicted, truth = np.zeros((3, CLASSES), np.int64)
    spent = 0.0
    for i in range(count):
        sample = samples[i]
        answer = model(sample.image, [])
        began = time.process_time()
        chosen = answer.whole().argmax(0)
        assert sample.labels is not None
        known = sample.labels != IGNORE
        p, t = chosen[known], sample.labels[known]
        both += np.histogram(p[p == t], bins)[0]
        predicted += np.histogram(p, bins)[0]
        truth += np.histogram(t, bins)[0]
        spent += time.process_time() - began
    found = truth > 0
    return (both / (predicted + truth - both).clip(1))[found], spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--compare", type=int, default=100, help="pictures that are also counted by histograms")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compared = min(options.compare, options.pictures)
    samples = Generated(compared)
    ours = evaluate(Model(samples), samples).together
    theirs, their_seconds = histogram_rule(samples, Model(samples), compared)
    apart = float(np.abs(np.array(list(ours.iou().values())) - theirs).max())
    samples = Generated(options.pictures)
    model = Model(samples)
    began, wall = time.process_time(), time.perf_counter()
    scores = evaluate(model, samples)
    spent, wall = time.process_time() - began, time.perf_counter() - wall
    counting = spent - model.seconds - samples.seconds
    fewer = "" if options.pictures == 2000 else f" --pictures {options.pictures}"
    body = {
        "command": f"python benchmarks/evaluation_counting.py{fewer}",
        "machine": device_key(), "torch": torch.__version__, "pictures": options.pictures, "classes": CLASSES,
        "counting_cpu_seconds": round(counting, 1),
        "counting_cpu_ms_per_picture": round(1000 * counting / options.pictures, 1),
        "generated_cpu_seconds": round(model.seconds + samples.seconds, 1), "wall_seconds": round(wall, 1),
        "miou": round(scores.together.miou(), 5), "boundary_iou": round(scores.together.boundary_iou(), 5),
        "compared_pictures": compared, "largest_iou_difference": apart,
        "histogram_rule_cpu_ms_per_picture": round(1000 * their_seconds / compared, 1),
    }  # fmt: skip
    write_json(options.output, body)
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
