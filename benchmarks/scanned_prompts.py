"""Prompts together or one after the other on a CPU: python benchmarks/scanned_prompts.py

Presence and mask decoder of the bundled model (a readout of random weights where it has none: time does not depend on them),
each as it is traced and as `digseg_export.scan_prompts` rewrites it, on ONNX Runtime's CPU provider, interleaved, one
thread. Writes the median milliseconds of both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from export_large import processor

from digseg_engine.contract import MASK_DECODER, PRESENCE, GraphSpec
from digseg_engine.model.graph_modules import graph_modules
from digseg_engine.model.pretrained import Checkpoint, add_presence, load_checkpoint
from digseg_export.ranges import session
from digseg_export.scan_prompts import scan_prompts
from digseg_export.to_onnx import example_inputs, export_asked

RESULT = Path(__file__).parent / "results" / "scanned-prompts.json"
WIDTH, TOKENS = 32, 8
CASES = ((128, 1), (128, 5), (128, 20), (128, 150), (512, 1), (512, 5), (512, 20), (512, 150))  # pixels, prompts
MOST = 20  # prompts at 512 px for the mask decoder: 150 masks of them are seconds each


def feeds(checkpoint: Checkpoint, size: int, prompts: int) -> dict[str, Any]:
    """Random numbers in the shapes of one picture of `size` pixels and so many prompts."""
    shapes = {name: list(x.shape) for name, x in example_inputs(checkpoint, 2 * checkpoint.stride).items()}
    grid, random = size // checkpoint.stride, np.random.default_rng(0)
    sizes = {"encoding": (1, shapes["encoding"][1], grid, grid), "text_keys": (prompts, *shapes["text_keys"][1:-1], TOKENS),
             "text_values": (prompts, *shapes["text_values"][1:-2], TOKENS, shapes["text_values"][-1])}  # fmt: skip
    found: dict[str, Any] = {name: random.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    return {**found, "token_mask": np.ones((prompts, TOKENS), bool)}


def measure(checkpoint: Checkpoint, spec: GraphSpec, model: onnx.ModelProto, rounds: int) -> Iterator[dict[str, Any]]:
    """One row for every case: median milliseconds together and scanned."""
    runs = {"together": session(model, threads=1), "scanned": session(scan_prompts(model), threads=1)}
    for size, prompts in CASES:
        if spec is MASK_DECODER and size > 128 and prompts > MOST:
            continue
        given = feeds(checkpoint, size, prompts)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                run.run(None, given)
                times[name].append(1000 * (time.perf_counter() - began))
        together, scanned = (statistics.median(kept[1:]) for kept in times.values())
        row = {"graph": spec.file, "pixels": size, "prompts": prompts, "together_ms": round(together, 2),
               "scanned_ms": round(scanned, 2), "scanned_over_together": round(scanned / together, 2)}  # fmt: skip
        print(json.dumps(row), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    typed = parser.parse_args()
    checkpoint = load_checkpoint()
    torch.manual_seed(0)
    add_presence(checkpoint, WIDTH)  # where it has none
    parts, inputs = graph_modules(checkpoint), example_inputs(checkpoint, 2 * checkpoint.stride)
    rows: list[dict[str, Any]] = []
    for module, spec in ((parts.presence, PRESENCE), (parts.mask_decoder, MASK_DECODER)):
        assert module is not None
        rows += measure(checkpoint, spec, export_asked(module, spec, inputs), typed.rounds)
    about = {
        "command": "python benchmarks/scanned_prompts.py", "date": date.today().isoformat(), "rows": rows,
        "hardware": f"{os.cpu_count()} cores, one thread, {processor()}",
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
    }  # fmt: skip
    typed.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
