"""`digseg data`: check labelled pictures before a model is trained or judged on them, and pack them into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option
from digseg_engine.errors import UsageError


def run(
    folder: str, layout: str | None, split: str, output: Path | None, pictures: int, pack: Path | None = None,
    shard_size: float = 500.0, shuffle: int | None = None,
) -> int:  # fmt: skip
    from rich.console import Console
    from rich.progress import Progress

    from digseg_engine.console import Pace, complain, note
    from digseg_engine.data.datasets import open_dataset
    from digseg_engine.data.survey import class_table, contact_sheet, split_line, survey
    from digseg_engine.files import replacing
    from digseg_engine.folders import check_output_file
    from digseg_engine.words import counted

    output = output or Path("out") / f"{Path(folder).resolve().name or 'data'}.labels.png"
    if output.suffix.lower() != ".png":
        raise UsageError(f"output {output} must be a .png file; choose another with -o")
    check_output_file(output)
    if pack is not None:
        check_pack(pack)
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
        unpacked = "" if pack is None else "; nothing was packed"
        complain("digseg", f"{counted(len(found.problems), 'problem')} in {folder}, listed above{unpacked}")
        return 2
    if pack is not None:
        write_shards(dataset, pack, shard_size, shuffle)
    return 0


def check_pack(target: Path) -> None:
    """Raises UsageError for a folder that shards cannot be written to."""
    from digseg_engine.data.packing import SHARD_FOLDER
    from digseg_engine.folders import check_target

    try:
        check_target(target, SHARD_FOLDER)
    except UsageError as error:
        raise UsageError(str(error).replace(" with -o", " with --pack")) from error


def write_shards(dataset: Any, target: Path, shard_size: float, shuffle: int | None) -> None:
    """Pack the splits that were looked at, and say what was written."""
    from digseg_engine.console import Pace, note
    from digseg_engine.data.datasets import dataset_splits, open_dataset
    from digseg_engine.data.packing import pack
    from digseg_engine.words import counted

    names = [dataset.split]
    if dataset.split == "all":
        names = [name for name in dataset_splits(dataset.root, dataset.layout.name) if name != "all"] or names
    splits = {name: open_dataset(dataset.root, dataset.layout.name, name) for name in names}
    packed = {record.image for one in splits.values() for record in one.records}
    if left := len(dataset) - len(packed):
        note("digseg", f"warning: {counted(left, 'picture')} of no split are not packed")
    shards = pack(
        splits, target, int(shard_size * 1e6), shuffle, Pace("packing pictures", sum(map(len, splits.values())))
    )
    print(f"{counted(len(shards), 'shard')} of {counted(len(packed), 'picture')} written to {target}")


COMMAND = Command(
    name="data",
    summary="Check every picture and mask; print pixels and pictures per class; draw labels over pictures.",
    run=run,
    options=(
        Option(
            "folder", "folder of labelled pictures, own data or a known data set, or shards (docs/data.md)", needed=True
        ),
        Option("--layout", "layout of the folder", shown="recognised", metavar="NAME"),
        Option("--split", "split to check, or all", default="all", metavar="NAME"),
        Option(
            "--output -o",
            "PNG with labels drawn over pictures",
            kind=Path,
            shown="out/FOLDER.labels.png",
            metavar="FILE",
        ),
        Option("--pictures", "pictures in the PNG, spread over the data set", kind=int, default=12, at_least=1),
        Option(
            "--pack",
            "write the pictures to this folder as shards (tar files), if all are sound",
            kind=Path,
            metavar="FOLDER",
        ),
        Option(
            "--shard-size",
            "MB that a shard holds",
            kind=float,
            default=500.0,
            at_least=0.1,
            metavar="MB",
            only_with=("--pack",),
        ),
        Option(
            "--shuffle",
            "seed of a random order of the packed pictures",
            kind=int,
            at_least=0,
            shown="as in the folder",
            metavar="SEED",
            only_with=("--pack",),
        ),
    ),
    examples=(
        "digseg data mydata",
        "digseg data ADEChallengeData2016 --split val -o ade.png",
        "digseg data mydata --pack shards --shuffle 0",
    ),
)
