"""`digseg data`: check a folder of labelled pictures before a model is trained or judged on it."""

from __future__ import annotations

from pathlib import Path

from digseg_engine.commands.declare import Command, Option
from digseg_engine.errors import UsageError


def run(folder: Path, layout: str | None, split: str, output: Path, pictures: int) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from digseg_engine.console import Pace, complain, note
    from digseg_engine.data.datasets import open_dataset
    from digseg_engine.data.survey import class_table, contact_sheet, split_line, survey
    from digseg_engine.files import replacing
    from digseg_engine.folders import check_output_file
    from digseg_engine.words import counted

    if output.suffix.lower() != ".png":
        raise UsageError(f"output {output} must be a .png file; choose another with -o")
    check_output_file(output)
    dataset = open_dataset(folder, layout, split, strict=False)
    console = Console()
    with Progress(transient=True) as bar:
        task = bar.add_task("checking", total=len(dataset))
        pace = Pace("checking pictures", len(dataset), speaks=not bar.console.is_terminal)

        def tick() -> None:
            bar.advance(task)
            pace()

        found = survey(dataset, tick)
    console.print(class_table(dataset, found))
    print(split_line(dataset))
    for warning in found.notes:
        note("digseg", f"warning: {warning}")
    for problem in found.problems:
        complain("digseg", problem)
    state = "can be read" if found.problems else "are sound"
    state += f"; warnings above: {len(found.notes)}" if found.notes else ""
    if found.good:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            contact_sheet(dataset, found.spread(pictures)).save(temporary, format="PNG")
        print(f"{len(found.good)} of {len(dataset)} pictures {state}; labels drawn in {output}")
    if found.problems:
        complain("digseg", f"{counted(len(found.problems), 'problem')} in {folder}, listed above")
    return 2 if found.problems else 0


COMMAND = Command(
    name="data",
    summary="Check every picture and mask; print pixels and pictures per class; draw labels over pictures.",
    run=run,
    options=(
        Option("folder", "folder of labelled pictures: own data or a known data set", kind=Path, needed=True),
        Option("--layout", "layout of the folder", shown="recognised", metavar="NAME"),
        Option("--split", "split to check, or all", default="all", metavar="NAME"),
        Option(
            "--output -o", "PNG with labels drawn over pictures", kind=Path, default=Path("data.png"), metavar="FILE"
        ),
        Option("--pictures", "pictures in the PNG, spread over the data set", kind=int, default=12, at_least=1),
    ),
    examples=("digseg data mydata", "digseg data ADEChallengeData2016 --split val -o ade.png"),
)
