"""`digseg eval`: pick the predictor for what was given, run the domains, print the table, write the report."""

from __future__ import annotations

import platform
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from digseg_engine.bundle import MANIFEST, read_manifest
from digseg_engine.errors import UsageError
from digseg_engine.model.pretrained import BUNDLED, load_checkpoint
from digseg_engine.training.evaluate import (
    Predict,
    Score,
    bundle_predictor,
    evaluate_domain,
    reference_predictor,
    student_predictor,
    summary,
    write_report,
)
from digseg_engine.training.scenes import DOMAINS


def choose_predictor(model: Path | None, reference_steps: int) -> tuple[Predict, str, int]:
    """(predictor, its name, the model's own picture size) for a checkpoint or bundle directory."""
    if model is not None and (model / MANIFEST).is_file():
        if reference_steps:
            raise UsageError("--reference-steps needs a checkpoint; a bundle holds the student only")
        size = int(read_manifest(model)["model"]["image_size"])
        return bundle_predictor(model), f"bundle {model.name}", size
    checkpoint = load_checkpoint(model)
    name = (model or BUNDLED).name
    if reference_steps:
        kind = f"{name}, reference, {reference_steps} step{'s' if reference_steps > 1 else ''}"
        return reference_predictor(checkpoint, reference_steps), kind, checkpoint.config.image_size
    return student_predictor(checkpoint), f"{name}, student, one step", checkpoint.config.image_size


def score_model(
    model: Path | None, domain: str, count: int, size: int | None, reference_steps: int, report: Path | None
) -> dict[str, Score]:
    """Score, print, optionally write JSON; returns the scores per domain."""
    if domain not in (*DOMAINS, "all"):
        raise UsageError(f"unknown domain {domain!r}; expected all or one of {', '.join(DOMAINS)}")
    predict, name, own_size = choose_predictor(model, reference_steps)
    chosen = DOMAINS if domain == "all" else (domain,)
    scores, began = {}, time.perf_counter()
    with Progress(transient=True) as bar:
        for each in chosen:
            task = bar.add_task(each, total=count)
            scores[each] = evaluate_domain(predict, each, count, size or own_size, partial(bar.advance, task))
    _print(scores, f"{name}: {count} test scenes per domain at {size or own_size} px", time.perf_counter() - began)
    if report is not None:
        about = {"model": name, "scenes_per_domain": count, "size": size or own_size, "reference_steps": reference_steps,
                 "torch": torch.__version__, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"}  # fmt: skip
        write_report(report, scores, about)
    return scores


def _print(scores: dict[str, Score], title: str, seconds: float) -> None:
    console = Console()
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for domain, score in scores.items():
        for figure, value in summary(domain, score).items():
            table.add_row(figure, f"{100 * value:.2f} %" if "false" in figure else f"mIoU {value:.4f}")
    console.print(table)
    console.print(f"{seconds:.1f} s", highlight=False)
