"""The engine end to end on every backend of a GPU machine: verified, then timed per size and number of prompts.

Two times a row: `picture_ms`, a host picture to masks (copies, label map and all), and `tensor_ms`, pixels to logits for
tensors that stay on the GPU, where the backend takes them. torch runs with and without CUDA graphs. Medians.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digseg_engine import DigsegError, Engine
from digseg_engine.runtime.backends import kinds
from digseg_engine.runtime.choice import check_golden
from digseg_engine.runtime.machine import device_key, library_versions

SIZES, COUNTS, RUNS = (256, 512), (1, 20, 150), 20


def median_ms(call: Callable[[], object], runs: int) -> float:
    """Median of `runs` calls after two; the GPU is waited for inside each."""
    seconds = []
    for i in range(runs + 2):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if i >= 2:
            seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def variants() -> list[tuple[str, str]]:
    """(backend, value of $DIGSEG_CUDA_GRAPHS): torch backends with graphs and without."""
    return [(name, graphs) for name in kinds() for graphs in (("1", "0") if name.startswith("torch") else ("1",))]


def rows_of(
    engine: Engine, graphs: str, sizes: tuple[int, ...], counts: tuple[int, ...], runs: int
) -> list[dict[str, Any]]:
    """One row per size and number of prompts."""
    error, iou = check_golden(engine.backend, engine.source.golden)
    about = {
        "backend": engine.backend.name,
        "cuda_graphs": graphs,
        "detail": engine.backend.detail,
        "error": error,
        "iou": iou,
    }
    takes_tensors = hasattr(engine.backend, "decode_tensor")
    rows = []
    for size in sizes:
        picture = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
        pixels = torch.rand(1, 3, size, size, device="cuda" if torch.cuda.is_available() else "cpu") * 2 - 1
        for count in counts:
            prompts = [f"thing {i}" for i in range(count)]
            picture_ms = median_ms(lambda p=prompts, image=picture, s=size: engine.segment(image, p, s), runs)
            tensor_ms = median_ms(lambda p=prompts, x=pixels: engine.logits(x, p), runs) if takes_tensors else None
            rows.append({**about, "size": size, "prompts": count, "picture_ms": picture_ms, "tensor_ms": tensor_ms})
    return rows


def run_engine(bundle: Path, checkpoint: Path | None, dry: bool, output: Path) -> list[dict[str, Any]]:
    """Time every backend that can run here and write `engine-<gpu>.json`. A dry run: tiny sizes, once, on the CPU."""
    sizes, counts, runs = ((64,), (2,), 1) if dry else (SIZES, COUNTS, RUNS)
    rows: list[dict[str, Any]] = []
    for name, graphs in variants():
        if dry and name == "torch-compile":
            continue  # minutes of compilation that show nothing here
        os.environ["DIGSEG_CUDA_GRAPHS"] = graphs
        try:
            with Engine.load(bundle, name, checkpoint) as engine:
                rows += rows_of(engine, graphs, sizes, counts, runs)
        except DigsegError as error:
            rows.append({"backend": name, "cuda_graphs": graphs, "unusable": str(error)})
        print(json.dumps(rows[-1]), flush=True)
    os.environ.pop("DIGSEG_CUDA_GRAPHS", None)
    gpu = "dry-run" if dry else torch.cuda.get_device_name().lower().replace(" ", "-")
    body = {
        "dry_run": dry,
        "bundle": bundle.name,
        "machine": device_key(),
        "versions": library_versions(),
        "rows": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"engine-{gpu}.json").write_text(json.dumps(body, indent=1) + "\n")
    return rows
