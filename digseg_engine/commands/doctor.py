"""`digseg doctor`: what runs on this machine, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from digseg_engine.commands.declare import Command, Option

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from digseg_engine.runtime.backends import Usable
    from digseg_engine.runtime.choice import Row, Verdict


def run(
    bundle: Path | None, checkpoint: Path | None, size: int | None, batch: int, prompts: list[int], report: Path | None,
    engines: Path | None,
) -> int:  # fmt: skip
    from rich.console import Console
    from rich.text import Text

    from digseg_engine.console import telling
    from digseg_engine.folders import check_output_file
    from digseg_engine.named import find_model
    from digseg_engine.runtime.doctor import choice_table, describe_bundle, inspect_machine, write_tables

    if report is not None:
        check_output_file(report)
    if bundle is not None:
        with telling():
            bundle = find_model(bundle)
        described = describe_bundle(bundle)
    checkpoint = None if checkpoint is None else find_model(checkpoint, on_hub=False)
    console = Console()
    for part in _machine(inspect_machine()):
        console.print(part, soft_wrap=isinstance(part, Text))  # lines to be copied are not broken
    if bundle is None:
        return 0
    console.print(described, highlight=False, markup=False)
    verdicts = []
    for count in prompts or [1]:
        with telling():
            verdicts.append(choice_table(bundle, checkpoint, size, batch, count, engines))
        console.print(_choice(verdicts[-1]))
    if report is not None:
        write_tables(report, bundle, verdicts)
    return 0 if all(verdict.chosen for verdict in verdicts) else 1  # raises with every reason when no backend was right


COMMAND = Command(
    name="doctor",
    summary="Show what is usable on this machine, how to install the rest, and which backend is right and fastest.",
    run=run,
    options=(
        Option("--bundle -b --model", "also check this bundle (or checkpoint), time every backend, choose one", kind=Path,
               metavar="FOLDER"),
        Option("--checkpoint", "checkpoint the bundle came from: adds torch backends", kind=Path, metavar="FOLDER",
               only_with=("--bundle",)),
        Option("--engines", "folder of TensorRT-RTX plans: adds the backend that runs them", kind=Path, metavar="FOLDER",
               only_with=("--bundle",)),
        Option("--size --imgsz", "time at this many pixels per side", kind=int, shown="the model's own",
               only_with=("--bundle",)),
        Option("--batch", "time with this many pictures at once", kind=int, default=1, at_least=1,
               only_with=("--bundle",)),
        Option("--prompts", "time with this many prompts, rounded up to 1, 4, 20, 64 or 256; repeat for several",
               kind=int, many=True, at_least=1, shown="1", only_with=("--bundle",)),
        Option("--json", "also write the tables, with machine and versions", kind=Path, metavar="FILE", into="report",
               only_with=("--bundle",)),
    ),
    examples=("digseg doctor", "digseg doctor --bundle digseg-tiny-fp16 --prompts 1 --prompts 20 --json choice.json"),
)  # fmt: skip


def _machine(found: list[Usable]) -> list[Table | Text]:
    """A table of what was found, parts of the same answer in one row, and below it how to get what is not there."""
    from rich.text import Text

    rows: dict[tuple[str, str], list[str]] = {}
    cures: dict[str, list[str]] = {}
    for backend in found:
        said = backend.detail if backend.usable else backend.reason
        if not backend.usable and backend.install and backend.install in said:  # said below
            said = said.partition(backend.install)[0].rpartition(";")[0] or said
        rows.setdefault(("yes" if backend.usable else "no", said), []).append(backend.name)
        if backend.install and not backend.usable:
            cures.setdefault(backend.install, []).append(backend.name)
    cells = [["\n".join(names), usable, said] for (usable, said), names in rows.items()]
    table = _table("usable on this machine", ("part", "usable", "what was found"), cells)
    lines = [Text(f"  {', '.join(names)}: {cure}") for cure, names in cures.items()]
    return [table, *([Text("to get the rest:")] if lines else []), *lines]


def _choice(verdict: Verdict) -> Group:
    """One line of figures per backend, and below the table, at full width, what each one runs or why it does not."""
    from rich.console import Group
    from rich.text import Text

    from digseg_engine.words import counted

    task = verdict.task
    title = f"golden sample, and time at {task.size} px, {counted(task.batch, 'picture')}, {counted(task.prompts, 'prompt')}"
    rows = [[*_figures(row), f"{row.ms:.1f}" if row.ms is not None else "", "<- chosen" if row.chosen else ""]
            for row in verdict.rows]  # fmt: skip
    columns = ("backend", "usable", "error", "mask IoU", "ms", "")
    return Group(_table(title, columns, rows), *(Text(_remark(row)) for row in verdict.rows))


def answers_table(rows: Sequence[Row]) -> Group:
    """The golden sample alone, as `digseg verify` shows it."""
    from rich.console import Group
    from rich.text import Text

    cells = [[*_figures(row), "yes" if row.right else "no" if row.usable else ""] for row in rows]
    table = _table("golden sample", ("backend", "usable", "error", "mask IoU", "right"), cells)
    return Group(table, *(Text(_remark(row)) for row in rows))


def _figures(row: Row) -> list[str]:
    numbers = [f"{row.error:.1e}" if row.error is not None else "", f"{row.iou:.5f}" if row.iou is not None else ""]
    return [row.backend, "yes" if row.usable else "no", *numbers]


def _remark(row: Row) -> str:
    return f"{row.backend}: {row.detail if row.right else row.why}"


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
