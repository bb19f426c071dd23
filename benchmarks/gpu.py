"""Everything that needs a GPU, in one command: `python benchmarks/gpu.py --kernels` (meant to stay under five minutes).
With `--engine BUNDLE --checkpoint DIR` it also times the engine end to end on every backend (`gpu_engine.py`).

Checks the Triton kernels against fp64, times them cold and graph-replayed next to eager, torch.compile and SDPA,
against ceilings measured in the same run, and writes JSON and a roofline picture to benchmarks/results/.
`--dry-run` walks the same code on the CPU with tiny shapes: errors are real, times stay empty.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Case, checked_cases, text_injection_case, timed_cases
from gpu_engine import run_engine
from gpu_measure import cold_ms, error_ratio, graph_ms, machine, peak_bytes
from gpu_targets import outcomes
from rooflines import ELEMENTS, Ceilings, measure_ceilings, plot, rates

RESULTS = Path(__file__).resolve().parent / "results"
NO_GPU = 2


def first(result: Any) -> torch.Tensor:
    """The tensor to compare, of a tensor or a tuple."""
    return result[0] if isinstance(result, tuple) else result


def check(case: Case) -> dict[str, Any]:
    """Error of our op against fp64, next to eager's."""
    found = error_ratio(first(case.ours()), first(case.eager()), case.exact())
    return {"op": case.op, "case": case.label, "dtype": ELEMENTS[case.dtype], **case.sizes, **found}


def providers(case: Case, dry: bool) -> dict[str, Any]:
    """Name -> callable, ours first. A dry run compiles with the eager backend: same path, no code generation."""
    torch.compiler.reset()
    compiled = torch.compile(case.eager, fullgraph=True, dynamic=False, backend="eager" if dry else "inductor")
    return {"triton": case.ours, "eager": case.eager, "compile": compiled, **case.peers}


def measure(case: Case, ceilings: Ceilings | None, dry: bool) -> list[dict[str, Any]]:
    """One row per provider."""
    rows = []
    for name, function in providers(case, dry).items():
        function()  # compiles, and fails here rather than inside a timer
        cold = [None] * 3 if dry else cold_ms(function)
        graph = [None] * 3 if dry else graph_ms(function)
        dtype = ELEMENTS[case.dtype]
        rows.append(
            {"op": case.op, "case": case.label, "dtype": dtype, "provider": name, **case.sizes}
            | {"cold_ms": cold[0], "cold_p20": cold[1], "cold_p80": cold[2]}
            | {"graph_ms": graph[0], "graph_p20": graph[1], "graph_p80": graph[2]}
            | {"peak_bytes": None if dry else peak_bytes(function), "bytes": case.moved, "flops": case.flops}
            | rates(cold[0], case.moved, case.flops, dtype, ceilings)
        )
    return rows


def sanitize() -> str:
    """Run one shape under compute-sanitizer, caching allocator off and allocations padded, in its own process."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer is not installed"
    command = [tool, "--tool", "memcheck", "--padding", "4096", "--error-exitcode", "9",
               sys.executable, __file__, "--one-shape"]  # fmt: skip
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return "clean" if done.returncode == 0 else f"exit {done.returncode}: {(done.stdout + done.stderr)[-800:]}"


def one_shape(device: torch.device) -> None:
    """What runs under compute-sanitizer: an odd shape, so that every mask matters."""
    case = text_injection_case("odd", torch.float16, device, k=5, n=333, c=256, o=24, h=8, tokens=13)
    first(case.ours()).sum().item()


def report(rows: list[dict[str, Any]]) -> str:
    """The table on the screen."""
    show = lambda value, form: "-" if value is None else format(value, form)  # noqa: E731
    lines = [f"{'op':<16}{'case':<20}{'provider':<20}   cold us graph us    GB/s  TFLOP/s roofline"]
    for row in rows:
        times = [None if row[key] is None else 1e3 * row[key] for key in ("cold_ms", "graph_ms")]
        lines.append(
            f"{row['op']:<16}{row['case']:<20}{row['provider']:<20}"
            f"{show(times[0], '9.1f'):>10}{show(times[1], '9.1f'):>9}"
            f"{show(row['gb_per_s'], '8.0f'):>8}{show(row['tflop_per_s'], '9.1f'):>9}"
            f"{show(row['share_of_roofline'], '9.0%'):>9}"
        )
    return "\n".join(lines)


def run_kernels(device: torch.device, dry: bool, output: Path | None) -> int:
    """All checks and timings; 0 if every error is within its limit, else 1. A missed speed target fails nothing."""
    about = machine(device)
    print(json.dumps(about))
    checks = [check(case) for case in checked_cases(device, tiny=dry)]
    wrong = [row for row in checks if not row["ok"]]
    print(f"{len(checks)} checks against fp64, {len(wrong)} over twice eager's error")
    ceilings = None if dry else measure_ceilings(lambda f: cold_ms(f)[0], device, 8192)
    rows = [row for case in timed_cases(device, tiny=dry) for row in measure(case, ceilings, dry)]
    targets = outcomes(rows)
    sanitizer = "not run" if dry else sanitize()
    print(report(rows), *(f"{t['outcome']:<13} {t['target']}" for t in targets), f"memcheck: {sanitizer}", sep="\n")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        name = "kernels-" + re.sub(r"[^a-z0-9]+", "-", about.get("gpu", "dry-run").lower()).strip("-")
        found = {"dry_run": dry, "machine": about, "ceilings": None if ceilings is None else asdict(ceilings),
                 "checks": checks, "rows": rows, "targets": targets, "sanitizer": sanitizer}  # fmt: skip
        (output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        if ceilings is not None and not plot(rows, ceilings, about["gpu"], output / f"{name}.png"):
            print("matplotlib is not installed: no roofline picture")
    for row in wrong:
        print("WRONG", row)
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 all right, 1 a kernel is wrong, 2 no GPU here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true", help="check and time the Triton kernels")
    parser.add_argument("--engine", type=Path, metavar="BUNDLE", help="time the engine end to end on every backend")
    parser.add_argument("--checkpoint", type=Path, help="with --engine: the checkpoint the bundle came from")
    parser.add_argument("--dry-run", action="store_true", help="walk the cases on the CPU; measures nothing")
    parser.add_argument("--output", type=Path, help="folder of the result files (default: benchmarks/results)")
    parser.add_argument("--one-shape", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (options.kernels or options.one_shape or options.engine):
        parser.error("nothing to do: pass --kernels or --engine BUNDLE")
    if options.engine and (options.dry_run or torch.cuda.is_available()):
        run_engine(options.engine, options.checkpoint, options.dry_run, options.output or RESULTS)
    if options.dry_run:
        return run_kernels(torch.device("cpu"), dry=True, output=options.output) if options.kernels else 0
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: no NVIDIA GPU here, nothing was measured (--dry-run walks the cases on the CPU)",
              file=sys.stderr)  # fmt: skip
        return NO_GPU
    os.environ["DIGSEG_TRITON"] = "force"
    device = torch.device("cuda", torch.cuda.current_device())
    if options.one_shape:
        one_shape(device)
        return 0
    return run_kernels(device, dry=False, output=options.output or RESULTS) if options.kernels else 0


if __name__ == "__main__":
    sys.exit(main())
