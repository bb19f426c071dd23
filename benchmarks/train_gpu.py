"""Step time and peak memory of every stage of training at Stable Diffusion 2.1's size: python benchmarks/train_gpu.py

Random weights, pictures of 512 px without contents, bf16; the micro-batches of the recipes sd15 and distill-sd; activations kept
and computed twice, and 8-bit AdamW where bitsandbytes is installed. A case is timed in two parts: `micro` (loss and gradients of
one micro-batch) and `update` (clipping, optimizer, average); a step of the recipe is `accumulate` times the one and the other.
Medians. Beside the peak of torch.cuda.max_memory_allocated stands what `digseg train --dry-run` counts. That the student imitates
the reference in every 16th micro-batch is in the peak and not in the times.

At most --minutes (10) on one GPU: cases that do not fit in are named in the result. Never run on a GPU by us: the tests go the
same way with a small model on the CPU (--model tiny --device cpu), where every tensor is counted instead.
--count-only writes what is counted, on any machine: some ten seconds a case.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "triton_kernels"), str(Path(__file__).resolve().parent)]

from gpu_measure import machine  # noqa: E402

from digseg_engine.files import write_json  # noqa: E402
from digseg_engine.model.config import PRESETS, preset  # noqa: E402
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, build, outline_checkpoint  # noqa: E402
from digseg_engine.runtime.machine import processor  # noqa: E402
from digseg_engine.training.loop import StageConfig, averaged  # noqa: E402
from digseg_engine.training.memory import STAGES, MemoryCounter, ShapedBatches, count_stage, drop, stage_work  # noqa: E402
from digseg_engine.training.recipe_files import recipe_settings  # noqa: E402
from digseg_engine.training.recipes.distill import DistillConfig  # noqa: E402
from digseg_engine.training.recipes.finetune import FinetuneConfig  # noqa: E402
from digseg_engine.training.run import stages_of  # noqa: E402
from digseg_engine.training.thrift import autocast, make_optimizer, recomputing, resolve_precision, tf32  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TRAINING, DISTILLING = "sd15", "distill-sd"  # whose micro-batches, rates and optimizers
WARM = 1  # steps before the clock runs
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One stage in one of its thrifts."""

    stage: str
    config: StageConfig

    @property
    def name(self) -> str:
        kept = "activations twice" if self.config.gradient_checkpointing else "activations kept"
        return f"{self.stage}, {kept}, {self.config.optimizer}"


@dataclass(frozen=True)
class Bench:
    """What all cases share. imitate_every, teacher_steps: of the recipes."""

    outline: Callable[[], Checkpoint]
    size: int
    device: torch.device
    precision: str
    steps: int
    imitate_every: int
    teacher_steps: int

    def steps_of_teacher(self, stage: str) -> int:
        return self.teacher_steps if stage == "few_step" else 4  # a student imitates masks of 4 steps


def cases(batch: int | None, precision: str, eight_bit: bool) -> list[Case]:
    """Every stage with activations kept and computed twice; with 8-bit AdamW computed twice alone."""
    stages = {
        **stages_of(recipe_settings(DISTILLING, DistillConfig)),
        **stages_of(recipe_settings(TRAINING, FinetuneConfig)),
    }
    found = []
    for name in STAGES:
        config = replace(stages[name], precision=precision, batch=batch or stages[name].batch)
        for twice in (False, True):
            found.append(Case(name, replace(config, gradient_checkpointing=twice)))
        if eight_bit:
            found.append(Case(name, replace(config, gradient_checkpointing=True, optimizer="adamw8bit")))
    return found


def counted(bench: Bench, case: Case) -> Row:
    """What the planner says of a case."""
    memory = count_stage(bench.outline, case.stage, case.config, bench.size, True, bench.precision, bench.imitate_every,
                         bench.steps_of_teacher(case.stage))  # fmt: skip
    return {"counted_gb": gigabytes(memory.peak), "counted": asdict(memory)}


class Peak:
    """The most bytes that tensors took since `reset`, while it is open."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counter = MemoryCounter() if device.type == "cpu" else None

    def __enter__(self) -> Peak:
        if self.counter is not None:
            self.counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.counter is not None:
            self.counter.__exit__(*error)

    def reset(self) -> None:
        if self.counter is None:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.counter.peak = self.counter.now

    def read(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.counter is None else self.counter.peak


def measured(bench: Bench, case: Case) -> Row:
    """Times and peak of a case, or why there are none."""
    try:
        with Peak(bench.device) as peak:
            micro, update = timed(bench, case, peak)
    except torch.OutOfMemoryError as error:
        return {"failed": " ".join(str(error).split())[:200]}
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    step = case.config.accumulate * median(micro) + median(update)
    return {"micro_seconds": median(micro), "update_seconds": median(update), "step_seconds": step,
            "peak_gb": gigabytes(peak.read())}  # fmt: skip


def gigabytes(size: float) -> float:
    return round(size / 1e9, 6)


def timed(bench: Bench, case: Case, peak: Peak) -> tuple[list[float], list[float]]:
    """(seconds of every micro-batch, of every update) of steps as `training.loop` makes them, cut to two micro-batches: with
    the second one, gradients and activations are there together."""
    config, device = case.config, bench.device

    def outline() -> Checkpoint:
        with device:  # drawn where they stay: a large network takes a minute on the CPU
            return bench.outline()

    checkpoint = outline()
    batches = ShapedBatches(checkpoint, bench.size, True)
    module, loss, asked = stage_work(outline, checkpoint, checkpoint.schedule, case.stage, config, batches,
                                     bench.imitate_every, bench.steps_of_teacher(case.stage))  # fmt: skip
    drop(checkpoint, asked)
    gc.collect()
    module.train()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = make_optimizer(config.optimizer, weights, config.learning_rate, config.weight_decay)
    average = averaged(module, config)
    peak.reset()  # what building took and gave back is no part of a step
    each, last = min(2, config.accumulate), WARM + bench.steps
    micro, update = list[float](), list[float]()
    with recomputing(config.gradient_checkpointing, module, checkpoint.vae), tf32(config.tf32):
        for step in range(last + 1):
            # In the first step and, beside the optimizer's state, in the last one a student imitates; neither is timed.
            first = step * each if step < last else bench.imitate_every * last * each
            for number in range(first, first + each):
                began = now(device)
                with autocast(device.type, resolve_precision(config.precision)):
                    value, _ = loss(module, number)
                (value / config.accumulate).backward()
                micro.append(now(device) - began)
            began = now(device)
            torch.nn.utils.clip_grad_norm_(weights, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(module)
            update.append(now(device) - began)
    return micro[WARM * each : last * each], update[WARM:last]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run(bench: Bench, chosen: list[Case], minutes: float, count_only: bool) -> tuple[list[Row], list[str]]:
    """(a row per case, the names of those for which no time was left)."""
    rows, left_out, began, longest = [], [], time.monotonic(), 0.0
    for case in chosen:
        started = time.monotonic()
        if started - began + longest > 60 * minutes:
            left_out.append(case.name)
            continue
        row = {
            "case": case.name,
            "batch": case.config.batch,
            "accumulate": case.config.accumulate,
            **counted(bench, case),
        }
        row |= {} if count_only else measured(bench, case)
        if "peak_gb" in row:
            row["counted_over_measured"] = round(row["counted_gb"] / row["peak_gb"], 3)
        rows.append(row)
        longest = max(longest, time.monotonic() - started)
        print({key: value for key, value in row.items() if key != "counted"}, flush=True)
    return rows, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="sd21")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="some of the stages (default: all)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--size", type=int, default=512, help="pixels of the pictures' side")
    parser.add_argument("--batch", type=int, help="pictures of a micro-batch (default: the recipe's)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a case, of two micro-batches each")
    parser.add_argument("--precision", choices=("bf16", "fp16", "no"), default="bf16")
    parser.add_argument("--minutes", type=float, default=10, help="cases that would begin after them are left out")
    parser.add_argument("--count-only", action="store_true", help="what the planner counts, without a GPU")
    parser.add_argument(
        "-o", "--output", type=Path, help="default: benchmarks/results/train-gpu.json, or train-gpu-counted.json"
    )
    options = parser.parse_args()
    device = torch.device("cpu" if options.count_only else options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU is visible; --count-only counts without one, --device cpu tries a small --model")
    if device.type == "cpu" and options.output is None and not options.count_only:
        parser.error("what the CPU takes says nothing of a GPU; name its file with --output")
    tokenizer, sizes = outline_checkpoint(BUNDLED).tokenizer, preset(options.model)
    training, distilling = recipe_settings(TRAINING, FinetuneConfig), recipe_settings(DISTILLING, DistillConfig)
    bench = Bench(lambda: build(sizes, tokenizer), options.size, device, options.precision, options.steps,
                  training.imitate_every, distilling.teacher_steps)  # fmt: skip
    eight_bit = options.count_only or (device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None)
    chosen = [case for case in cases(options.batch, options.precision, eight_bit) if case.stage in options.stages]
    minutes = math.inf if options.count_only else options.minutes
    rows, left_out = run(bench, chosen, minutes, options.count_only)
    host = {"cpu": f"{os.cpu_count()} cores, {processor()}", **machine(device)}
    words = {"command": " ".join(["python benchmarks/train_gpu.py", *sys.argv[1:]]), "date": str(date.today())}
    memory = "torch.cuda.max_memory_allocated" if device.type == "cuda" else "every tensor counted"
    body = {**words, **host, "model": options.model, "size": options.size, "precision": options.precision,
            "recipes": [TRAINING, DISTILLING], "timed_steps": options.steps, "memory": memory, "rows": rows,
            "left_out": left_out}  # fmt: skip
    output = options.output or RESULTS / ("train-gpu-counted.json" if options.count_only else "train-gpu.json")
    write_json(output, body)
    print(f"written to {output}" + (f"; no time was left for {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    main()
