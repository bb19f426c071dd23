"""`digseg segment` and `digseg doctor`. What they need is imported inside them: `segment` never meets torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from digseg_engine.errors import UsageError
from digseg_engine.runtime.pictures import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from digseg_engine.runtime.choice import Verdict


def segment(
    photos: Annotated[list[str], typer.Argument(help="pictures, folders or patterns such as 'photos/*.jpg'")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="what to find; repeat for several")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for masks and overlays")] = Path("out"),
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", help=f"exported bundle [default: $DIGSEG_BUNDLE, else ./{DEFAULT_BUNDLE}]"),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto (measured) or a name that `digseg doctor` lists")] = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help="checkpoint the bundle came from: for --refine and the torch backends")
    ] = None,
    imgsz: Annotated[int | None, typer.Option(help="working size in pixels of the longer side, or of a tile")] = None,
    tile: Annotated[int | None, typer.Option(help="work in tiles of this many pixels, for very large pictures")] = None,
    overlap: Annotated[float, typer.Option(help="with --tile: share of a tile that neighbours have in common")] = 0.25,
    refine: Annotated[int, typer.Option(help="let the reference go over this many of the most confident masks")] = 0,
    steps: Annotated[int, typer.Option(help="with --refine: sampling steps, 1 to 4")] = 4,
    seed: Annotated[int, typer.Option(help="with --refine: random seed")] = 0,
) -> int:
    """Segment pictures by text: overlay, one mask per prompt, label map and JSON for each."""
    from digseg_engine.runtime.pictures import segment_pictures

    return segment_pictures(
        photos, prompt or [], output, bundle, backend, checkpoint, imgsz, tile, overlap, refine, steps, seed
    )


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", "-b", help="also check this bundle (or checkpoint), time every backend, choose one"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="checkpoint the bundle came from: adds torch backends")
    ] = None,
    size: Annotated[int | None, typer.Option(help="time at this many pixels per side [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(help="time with this many pictures at once")] = 1,
    prompts: Annotated[
        list[int],
        typer.Option(help="time with this many prompts, rounded up to 1, 4, 20, 64 or 256; repeat for several"),
    ] = [1],  # noqa: B006 - typer copies it
    report: Annotated[
        Path | None, typer.Option("--json", help="also write the tables, with machine and versions")
    ] = None,
) -> int:
    """Show what is usable on this machine, how to install the rest, and which backend is right and fastest."""
    from rich.console import Console

    from digseg_engine.runtime.doctor import choice_table, describe_bundle, inspect_machine, write_tables

    console = Console()
    rows = [
        [r.name, "yes" if r.usable else "no", r.detail if r.usable else r.reason, r.install] for r in inspect_machine()
    ]
    console.print(_table("usable on this machine", ("part", "usable", "what was found", "to get it"), rows))
    if bundle is None:
        if report is not None:
            raise UsageError("--json holds the tables of a bundle or checkpoint; name one with --bundle")
        return 0
    console.print(describe_bundle(bundle), highlight=False, markup=False)
    verdicts = []
    for count in prompts:
        verdicts.append(choice_table(bundle, checkpoint, size, batch, count))
        console.print(_choice(verdicts[-1]))
    if report is not None:
        write_tables(report, bundle, verdicts)
    return 0 if all(verdict.chosen for verdict in verdicts) else 1  # raises with every reason when no backend was right


def _choice(verdict: Verdict) -> Group:
    """One line of figures per backend, and below the table, at full width, what each one runs or why it does not."""
    from rich.console import Group
    from rich.text import Text

    task = verdict.task
    title = f"golden sample, and time at {task.size} px, {task.batch} picture(s), {task.prompts} prompt(s)"
    rows, notes = [], []
    for row in verdict.rows:
        figures = [f"{row.error:.1e}" if row.error is not None else "", f"{row.iou:.5f}" if row.iou is not None else "",
                   f"{row.ms:.1f}" if row.ms is not None else ""]  # fmt: skip
        rows.append([row.backend, "yes" if row.usable else "no", *figures, "<- chosen" if row.chosen else ""])
        notes.append(f"{row.backend}: {row.detail if row.right else _why(row.reason, row.install)}")
    columns = ("backend", "usable", "error", "mask IoU", "ms", "")
    return Group(_table(title, columns, rows), *(Text(note) for note in notes))


def _why(reason: str, install: str) -> str:
    """A reason and what helps, each said once."""
    return reason if not install or install in reason else f"{reason}; {install}"


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
