"""Where the speed comes from, one technique after the other: `python -m benchmarks.waterfall [-o JSON]`.

The bundled checkpoint answers the same prompts about the same test scenes, from a sampler with a pass per prompt to the verified
bundle on its fastest backend; every step keeps what came before it. Milliseconds of a question, medians over scenes and rounds in
which the steps take turns, beside the mean IoU of the prompts that are there and the share of the picture that the others mark.
One thread, its processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from digseg_engine import BackendError, Engine
from digseg_engine.evaluation.predictors import reference_logits
from digseg_engine.evaluation.protocols import TEST_SEED
from digseg_engine.files import replacing, write_json
from digseg_engine.images import fit
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.graph_modules import graph_modules
from digseg_engine.model.mask_head import upsample_sum
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.text_pathway import attend
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime.machine import device_key, library_versions
from digseg_engine.runtime.presence import ABSENT, ask
from digseg_engine.worlds.scenes import CLASSES, DOMAINS, scene

RESULTS = Path(__file__).resolve().parent / "results"
FORMAT = "digseg.waterfall/1"
LONG = 1.0  # seconds: a step that takes longer is timed in one round


@dataclass
class Case:
    """A picture, [1, 3, H, W], its prompts, of which the first `there` are in it, and their masks [there, H, W]."""

    pixels: Tensor
    prompts: list[str]
    truth: np.ndarray
    kept: dict[str, Any] = field(default_factory=dict)  # what later questions find encoded

    @property
    def there(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Step:
    """One technique more. ask: logits [K, h, w] of a case; question: which one is timed from here on."""

    name: str
    question: str
    ask: Callable[[Case], Any]


def cases(count: int, prompts: int, size: int, stride: int) -> Iterator[Case]:
    """Test scenes of every domain, asked for what is in them and for names of the other domains."""
    for domain in DOMAINS:
        for i in range(count):
            painted = scene(TEST_SEED + i, domain, size, "test")
            names = painted.names()[:prompts]
            others = [
                name for other, known in CLASSES.items() if other != domain for name in known if name not in names
            ]
            pixels = torch.from_numpy(fit(painted.image, size, stride).pixels)
            yield Case(pixels, [*names, *others][:prompts], np.stack([painted.mask(name) for name in names]))


def once(case: Case, name: str, make: Callable[[], Any]) -> Any:
    """What is encoded before the question."""
    if name not in case.kept:
        case.kept[name] = make()
    return case.kept[name]


def sampled(checkpoint: Checkpoint, steps: int) -> Callable[[Case], Tensor]:
    """The reference, a pass of everything for every prompt."""

    def ask_reference(case: Case) -> Tensor:
        passes = [reference_logits(checkpoint, case.pixels, [prompt], steps, steps > 1) for prompt in case.prompts]
        return torch.cat(passes)

    return ask_reference


def unfolded(checkpoint: Checkpoint) -> Callable[[Case], Tensor]:
    """The student as it is defined: the trunk once, then cross-attention at full width for every prompt, and the light head."""
    student = checkpoint.student

    def ask_student(case: Case) -> Tensor:
        ids, mask = tokens(checkpoint, case.prompts)
        text = checkpoint.text_encoder(ids).last_hidden_state
        text = (text - student.text_centre) @ student.text_whiten
        narrow, to_head = student.describe(case.pixels, encode_image(checkpoint.vae, case.pixels))
        maps = []
        for features, inject, reduce in zip(narrow, student.injections, student.reduce):
            cells = features.flatten(2).transpose(1, 2).expand(len(ids), -1, -1)  # [K, N, C]
            said = inject.text_norm(text)
            q, k, v = (inject._split(x) for x in (inject.query(cells), inject.key(said), inject.value(said)))
            mixed = inject.out(attend(q, k, v, mask, inject.scale).transpose(1, 2).flatten(2))
            maps.append(reduce(cells + inject.gate * mixed).transpose(1, 2).unflatten(2, features.shape[-2:]))
        fused = upsample_sum(maps, student.strides)
        return student.head(fused if to_head is None else fused + to_head)

    return ask_student


def tokens(checkpoint: Checkpoint, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """ids, mask [K, L]."""
    ids, mask = checkpoint.tokenizer.encode(prompts)
    return torch.as_tensor(np.asarray(ids)), torch.as_tensor(np.asarray(mask))


def folded(checkpoint: Checkpoint) -> dict[str, Callable[[Case], Tensor]]:
    """The graphs that are exported, in PyTorch: a first question, a later one, and a later one of active prompts alone."""
    graphs, threshold = graph_modules(checkpoint), checkpoint.config.presence_threshold

    def text(case: Case) -> tuple[Tensor, ...]:
        ids, mask = tokens(checkpoint, case.prompts)
        return (*graphs.text_encoder(ids, mask), mask)

    def first(case: Case) -> Tensor:
        return graphs.mask_decoder(graphs.image_encoder(case.pixels), *text(case))[0]

    def kept(case: Case) -> tuple[Tensor, ...]:
        return once(case, "torch", lambda: (graphs.image_encoder(case.pixels), *text(case)))

    def active(case: Case) -> Tensor:
        encoding, *words = kept(case)
        there = graphs.presence(encoding, *words)[0] >= threshold  # type: ignore[misc]
        found = graphs.mask_decoder(encoding, *(part[there] for part in words))[0]
        whole = found.new_full((len(there), *found.shape[1:]), ABSENT)
        whole[there] = found
        return whole

    return {"first": first, "later": lambda case: graphs.mask_decoder(*kept(case))[0], "active": active}


def exported(bundle: Path, backend: str) -> Callable[[Case], Any]:
    """The bundle on a backend: a later question of active prompts. Raises BackendError where it cannot run."""
    engine = Engine.load(bundle, backend, threads=1)

    def ask_bundle(case: Case) -> Any:
        place, text = once(case, backend, lambda: (engine.runner.encode(case.pixels.numpy())[0][0],
                                                   engine.prompts.fold(case.prompts)))  # fmt: skip
        return ask(engine.runner, place, text, engine.gate)[0].logits[0]

    return ask_bundle


def steps_of(checkpoint: Checkpoint, bundle: Path, sampling: int) -> list[Step]:
    """All techniques that run here, in order."""
    graphs = folded(checkpoint)
    found = [
        Step(f"reference, {sampling} sampling steps, a pass per prompt", "first", sampled(checkpoint, sampling)),
        Step("one step", "first", sampled(checkpoint, 1)),
        Step("shared trunk and light head (student)", "first", unfolded(checkpoint)),
        Step("constants and text folded", "first", graphs["first"]),
        Step("picture and prompts encoded once", "later", graphs["later"]),
    ]
    if checkpoint.config.presence_threshold is not None:
        found.append(Step("active prompts alone", "later", graphs["active"]))
    for name, backend in (("ONNX Runtime, weights stored in fp16", "onnxruntime"),
                          ("OpenVINO, float32", "openvino"), ("OpenVINO, bf16 arithmetic", "openvino-bf16")):  # fmt: skip
        try:
            found.append(Step(name, "later", exported(bundle, backend)))
        except BackendError as error:
            print(f"{backend}: {error}", file=sys.stderr)
    return found


def scores(case: Case, logits: Any) -> tuple[list[float], list[float]]:
    """IoU of every prompt that is there, and of every other the share of the picture that it marks."""
    planes = torch.as_tensor(np.asarray(logits, np.float32))[None]
    masks = (F.interpolate(planes, size=case.pixels.shape[2:], mode="bilinear")[0] > 0).numpy()
    own = masks[: case.there]
    union = (own | case.truth).sum((1, 2))
    return list((own & case.truth).sum((1, 2)) / union), list(masks[case.there :].mean((1, 2)))


@torch.no_grad()
def measure(steps: list[Step], pictures: list[Case], rounds: int) -> list[dict[str, Any]]:
    """Every step about every picture; the steps take turns. The first round warms up and is where quality is counted."""
    taken: dict[str, list[float]] = {step.name: [] for step in steps}
    found: dict[str, tuple[list[float], list[float]]] = {step.name: ([], []) for step in steps}
    for turn in range(rounds + 1):
        timed = [step for step in steps if turn < 2 or statistics.median(taken[step.name]) < LONG]
        for case in pictures:
            for step in timed:
                began = time.process_time()
                logits = step.ask(case)
                seconds = time.process_time() - began
                if turn:
                    taken[step.name].append(seconds)
                else:
                    for kept, new in zip(found[step.name], scores(case, logits)):
                        kept += new
    return [row(step, taken[step.name], *found[step.name]) for step in steps]


def row(step: Step, seconds: list[float], ious: list[float], areas: list[float]) -> dict[str, Any]:
    median, late = np.percentile(seconds, [50, 95])
    return {"technique": step.name, "question": step.question, "median_ms": 1000 * float(median), "p95_ms": 1000 * float(late),
            "runs": len(seconds), "mean_iou": float(np.mean(ious)), "masks": len(ious),
            "false_area": float(np.mean(areas)) if areas else None}  # fmt: skip


def draw(figures: dict[str, Any], path: Path) -> None:
    """A bar for every step, with its factor over the one before and its mean IoU."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = figures["rows"]
    figure, axis = pyplot.subplots(figsize=(9, 0.55 * len(rows) + 1.4), layout="constrained")
    colours = {"first": "C0", "later": "C1"}
    for i, each in enumerate(rows):
        before = rows[i - 1]["median_ms"] / each["median_ms"] if i else 1.0
        axis.barh(i, each["median_ms"], color=colours[each["question"]])
        axis.text(each["median_ms"] * 1.08, i, f"{each['median_ms']:.1f} ms ({before:.2f} x), mean IoU {each['mean_iou']:.3f}",
                  va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(rows)), [each["technique"] for each in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xscale="log", xlim=(min(r["median_ms"] for r in rows) / 2, max(r["median_ms"] for r in rows) * 20),
             xlabel="milliseconds of a question (blue: first, orange: later)",
             title=f"{figures['prompts']} prompts, {figures['size']} px, one thread")  # fmt: skip
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "waterfall.json")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--count", type=int, default=2, help="test scenes of every domain")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of the sampler, at first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine did")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(BUNDLED)
    size = checkpoint.config.image_size
    pictures = list(cases(options.count, options.prompts, size, checkpoint.stride))
    load = list(os.getloadavg())
    rows = measure(steps_of(checkpoint, options.bundle, options.steps), pictures, options.rounds)
    figures = {
        "format": FORMAT, "command": shlex.join(["python", "-m", "benchmarks.waterfall", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "note": options.note,
        "machine": {**device_key(), "load": load}, "versions": library_versions(), "threads": 1,
        "clock": "processor time of one thread", "size": size, "prompts": options.prompts, "scenes": len(pictures),
        "rows": rows,
    }  # fmt: skip
    from benchmarks.speed_chart import picture_of

    write_json(options.output, figures)
    draw(figures, picture_of(options.output))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
