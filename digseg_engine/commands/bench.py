"""`digseg bench`: how long every backend takes for every stage, and how it is shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digseg_engine.commands.declare import Command, Option
from digseg_engine.words import counted

if TYPE_CHECKING:
    from rich.table import Table

MOST = 4096  # pixels of a side, prompts, pictures at once


def run(
    bundle: Path | None, checkpoint: Path | None, backends: str, sizes: tuple[int, ...], prompts: tuple[int, ...],
    batch: tuple[int, ...], threads: int | None, device: str | None, engines: Path | None, runs: int, report: Path | None,
    chart: Path | None, note: str,
) -> int:  # fmt: skip
    from dataclasses import replace

    from rich.console import Console

    from digseg_engine.console import Pace, telling
    from digseg_engine.console import note as tell
    from digseg_engine.extras import require
    from digseg_engine.files import write_json
    from digseg_engine.folders import check_output_file
    from digseg_engine.named import find_model
    from digseg_engine.runtime import bench
    from digseg_engine.runtime.source import open_source

    for path in filter(None, (report, chart)):
        check_output_file(path)
    if chart is not None:
        require("digseg bench --chart", "train", modules=("matplotlib",))
    with telling():
        model = find_model(bundle)
    source = replace(open_source(model, checkpoint), threads=threads, device=device, engines=engines)
    plan = bench.Plan({"model": model, "checkpoint": checkpoint, "threads": threads, "device": device, "engines": engines},
                      sizes, prompts, batch, runs)  # fmt: skip
    asked = bench.wanted(backends, source)
    measured = []
    for name, reason in asked.items():
        if reason:
            measured.append(bench.Measured(name, reason=reason))
            continue
        pace = Pace(f"measuring {name}, {counted(len(plan.tasks), 'shape')} and its start", bench.parts(plan))
        measured.append(bench.measure_backend(name, plan, pace))
        if reason := measured[-1].reason:
            tell("digseg", f"{name}: {reason}")
    body = bench.report(plan, source, measured, ["digseg", *sys.argv[1:]], note)
    console = Console()
    for table in tables(body):
        console.print(table)
    for line in remarks(body):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if report is not None:
        write_json(report, body)
    if chart is not None:
        from digseg_engine.runtime.bench_chart import draw

        draw(body, chart)
    return 0 if any(one.rows for one in measured) else 1


def numbers(text: str) -> tuple[int, ...]:
    """ "128,256" -> (128, 256), each once. Raises ValueError for what is none, or out of range."""
    found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if not all(1 <= number <= MOST for number in found):
        raise ValueError(text)
    return found


def _numbers(flags: str, help: str, default: tuple[int, ...], into: str = "") -> Option:
    words = f"whole numbers from 1 to {MOST}, with commas between"
    return Option(flags, help, kind=numbers, default=default, shown=",".join(map(str, default)), metavar="N,...",
                  expects=words, into=into)  # fmt: skip


COMMAND = Command(
    name="bench",
    summary="Measure every backend: each stage and end to end, first and later questions, start-up and memory.",
    run=run,
    options=(
        Option("bundle", "exported bundle or checkpoint (default: as for `digseg segment`)", kind=Path, metavar="BUNDLE"),
        Option("--checkpoint", "checkpoint the bundle came from: adds torch backends", kind=Path, metavar="FOLDER"),
        Option("--backends", "all that can run here, or names with commas between", default="all", metavar="NAME,..."),
        _numbers("--sizes", "pixels of the longer side", (128, 256, 512)),
        _numbers("--prompts", "prompts about each picture", (1, 8, 20, 150)),
        _numbers("--batch", "pictures at once", (1, 8)),
        Option("--threads", "threads on a CPU", kind=int, at_least=1, shown="the cores of this process"),
        Option("--device", "cpu, cuda or cuda:1; of OpenVINO also gpu, gpu:1 or npu", shown="the backend's own", metavar="NAME"),
        Option("--engines", "folder of TensorRT-RTX plans to run", kind=Path, metavar="FOLDER"),
        Option("--runs", "calls of each kind, fewer where they take longer than ten seconds", kind=int, default=7, at_least=1),
        Option("--json", "also write everything that was measured, with machine and versions", kind=Path, metavar="FILE",
               into="report"),
        Option("--chart", "also draw milliseconds against prompts", kind=Path, metavar="PNG"),
        Option("--note", "what a reader of the JSON should know, such as what else the machine did", default=""),
    ),
    examples=(
        "digseg bench",
        "digseg bench digseg-tiny-fp16 --backends onnxruntime,openvino --sizes 256 --prompts 1,20 --json bench.json",
    ),
)  # fmt: skip


STAGES = {"text": "text", "encode": "encode", "presence": "presence", "masks": "decode", "label": "resize"}


def tables(body: dict[str, Any]) -> list[Table]:
    """One table of starts, and one for every size and batch: a row per number of prompts and backend. A stage that no model
    here has is left out."""
    began = _table("from process start to the first mask, seconds", ("backend", "first start", "later starts"))
    shapes: dict[tuple[int, int], list[tuple[str, dict[str, Any]]]] = {}
    for one in body["backends"]:
        if one["startup"]:
            seconds = one["startup"]["first_ms"] / 1000, one["startup"]["later"]["median_ms"] / 1000
            began.add_row(one["backend"], *(f"{value:.2f}" for value in seconds))
        for row in one["rows"]:
            shapes.setdefault((row["size"], row["batch"]), []).append((one["backend"], row))
    stages = [step for step in STAGES if any(_takes(row, step) for rows in shapes.values() for _, row in rows)]
    found = [began] if began.row_count else []
    for (size, batch), rows in shapes.items():
        words = "one picture" if batch == 1 else f"{batch} pictures at once"
        names = ("K", "backend", "first", "95 %", *(STAGES[step] for step in stages), "later", "95 %", "MiB")
        found.append(_table(f"{size} px, {words}, K prompts: milliseconds of a first and a later question", names))
        for name, row in sorted(rows, key=lambda pair: pair[1]["prompts"]):
            found[-1].add_row(str(row["prompts"]), name, *_cells(row, stages))
    return found


def _table(title: str, columns: tuple[str, ...]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "backend" else "right", no_wrap=True)
    return table


def _takes(row: dict[str, Any], step: str) -> bool:
    return "reason" not in row and row["first"]["steps"][step]["median_ms"] > 0


def _cells(row: dict[str, Any], stages: list[str]) -> list[str]:
    if "reason" in row:  # told below the tables
        return ["-"]
    steps = [_shown(row["first"]["steps"][step]["median_ms"]) for step in stages]
    first, later = ([_shown(row[kind][which]) for which in ("median_ms", "p95_ms")] for kind in ("first", "later"))
    return [*first, *steps, *later, "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"]


def _shown(milliseconds: float) -> str:
    """Three figures or more, in little room."""
    return f"{milliseconds:.1f}" if milliseconds < 99.95 else f"{milliseconds:.0f}"


def remarks(body: dict[str, Any]) -> list[str]:
    """What each backend runs or why it does not, and what did not fit or had to be done otherwise, a line each."""
    lines = []
    for one in body["backends"]:
        lines.append(f"{one['backend']}: {one['reason'] or one['detail']}")
        for row in one["rows"]:
            where = f"{row['size']} px, {counted(row['batch'], 'picture')}, {counted(row['prompts'], 'prompt')}"
            lines += [
                f"{one['backend']}, {where}: {said}" for said in [*row.get("notes", ()), row.get("reason")] if said
            ]
    return lines
