"""What a checkpoint's reference and `refine` reach: `python benchmarks/refine.py [--checkpoint DIR] [--write]`.

Test scenes of every domain, asked for what is in them; mean IoU per mask of the student, of the reference in 1, 2, 4 and
8 steps, of refining the student's masks and the true masks in 1, 2 and 4 steps, and of the true masks after the autoencoder.
Prints and writes JSON; --write also puts the means into the checkpoint's quality.json, by which the engine allows `refine`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digseg_engine.evaluation.predictors import reference_predictor, student_predictor
from digseg_engine.files import write_json
from digseg_engine.images import fit, unfit
from digseg_engine.model.autoencoder import decode_mask, encode_mask
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.quality import Figures, write_quality
from digseg_engine.model.refine import Refiner
from digseg_engine.runtime.machine import device_key
from digseg_engine.worlds.scenes import DOMAINS, Scene, scene

RESULTS = Path(__file__).resolve().parent / "results"
TEST_SEED = 3_000_000
SURE = 8.0  # the logit that stands for a true mask
REFERENCE_STEPS, REFINE_STEPS = (1, 2, 4, 8), (1, 2, 4)


class Measure:
    """All answers of a checkpoint to one scene, as masks [K, H, W] by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.refiner = checkpoint, Refiner(checkpoint, torch.device("cpu"))
        self.student = student_predictor(checkpoint)
        self.reference = {n: reference_predictor(checkpoint, n) for n in REFERENCE_STEPS}

    @torch.inference_mode()
    def answers(self, one: Scene, names: list[str], truth: Any) -> dict[str, Any]:
        canvas = fit(one.image, self.checkpoint.config.image_size, self.checkpoint.stride)
        ids, mask = self.checkpoint.tokenizer.encode(names)
        logits = self.student(one.image, names).whole()
        reference = {f"reference@{n}": ask(one.image, names).whole() for n, ask in self.reference.items()}
        found = {"student": logits, **reference}
        starts = {"refine_student": logits, "refine_truth": np.where(truth, SURE, -SURE).astype(np.float32)}
        for name, start in starts.items():
            for n in REFINE_STEPS:
                better = self.refiner(canvas.pixels, ids, mask, start, n, one.seed)
                found[f"{name}@{n}"] = unfit(better, canvas)
        coded = encode_mask(self.checkpoint.vae, torch.from_numpy(truth).float())
        found["codec"] = decode_mask(self.checkpoint.vae, coded).numpy()
        return {name: answer > 0 for name, answer in found.items()}


def ious(got: Any, want: Any) -> list[float]:
    """IoU of every mask; none of `want` is empty."""
    return [float((g & w).sum() / (g | w).sum()) for g, w in zip(got, want)]


def measure(checkpoint: Checkpoint, count: int) -> dict[str, dict[str, list[float]]]:
    """IoU of every mask by domain and answer."""
    asked, found = Measure(checkpoint), {}
    for domain in DOMAINS:
        rows: dict[str, list[float]] = {}
        for i in range(count):
            one = scene(TEST_SEED + i, domain, checkpoint.config.image_size, "test")
            names = one.names()
            truth = np.stack([one.mask(name) for name in names])
            for name, got in asked.answers(one, names, truth).items():
                rows.setdefault(name, []).extend(ious(got, truth))
        found[domain] = rows
        print(
            json.dumps({"domain": domain, **{name: round(float(np.mean(all_)), 4) for name, all_ in rows.items()}}),
            flush=True,
        )
    return found


def summary(found: dict[str, dict[str, list[float]]], measured: dict[str, Any]) -> Figures:
    """Means over the masks of all domains."""
    means = {
        name: float(np.mean([x for rows in found.values() for x in rows[name]])) for name in next(iter(found.values()))
    }

    def by_steps(name: str) -> dict[int, float]:
        return {int(key.split("@")[1]): round(mean, 4) for key, mean in means.items() if key.startswith(name + "@")}

    return Figures(round(means["student"], 4), by_steps("reference"), by_steps("refine_student"), by_steps("refine_truth"),
                   round(means["codec"], 4), measured)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--count", type=int, default=10, help="scenes per domain")
    parser.add_argument("--write", action="store_true", help="write the means into the checkpoint's quality.json")
    parser.add_argument("--output", type=Path, default=RESULTS / "refine.json")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    found = measure(checkpoint, options.count)
    masks = sum(len(rows["student"]) for rows in found.values())
    measured = {"on": "generated test scenes of every domain", "scenes": options.count * len(found), "masks": masks,
                "pixels": checkpoint.config.image_size,
                "command": f"python benchmarks/refine.py --count {options.count} --write"}  # fmt: skip
    total = summary(found, measured)
    rows = [{"domain": domain, "masks": len(rows["student"]), **{name: float(np.mean(x)) for name, x in rows.items()}}
            for domain, rows in found.items()]  # fmt: skip
    write_json(options.output, {"checkpoint": options.checkpoint.name, "machine": device_key(), "torch": torch.__version__,
                                "means": dict(vars(total)), "rows": rows})  # fmt: skip
    print(json.dumps(vars(total)))
    if options.write:
        write_quality(options.checkpoint, total)


if __name__ == "__main__":
    main()
