"""`digseg segment`: pictures and prompts to masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option


def run(**values: Any) -> int:
    from digseg_engine.runtime.pictures import segment_pictures

    return segment_pictures(**values)


COMMAND = Command(
    name="segment",
    summary="Segment pictures by text: overlay, one mask per prompt, label map and JSON for each.",
    run=run,
    options=(
        Option("photos", "pictures, folders or patterns such as 'photos/*.jpg'", metavar="PICTURES", many=True, needed=True),
        Option("--prompt -p", "what to find; repeat for several", many=True),
        Option("--output -o", "folder for masks and overlays", kind=Path, default=Path("out"), metavar="FOLDER"),
        Option("--bundle -b", "exported bundle", kind=Path, metavar="FOLDER",
               shown="$DIGSEG_BUNDLE, else ./digseg-tiny-fp16"),
        Option("--backend", "auto (measured) or a name that `digseg doctor` lists", default="auto", metavar="NAME"),
        Option("--checkpoint", "checkpoint the bundle came from: for --refine and the torch backends", kind=Path,
               metavar="FOLDER"),
        Option("--imgsz --size", "working size in pixels of the longer side, or of a tile", kind=int,
               shown="the model's own"),
        Option("--tile", "work in tiles of this many pixels, for very large pictures", kind=int),
        Option("--overlap", "share of a tile that neighbours have in common", kind=float, default=0.25, at_least=0,
               at_most=0.5, only_with=("--tile",)),
        Option("--refine", "let the reference go over this many of the most confident masks", kind=int, default=0,
               at_least=0, not_with=("--tile",)),
        Option("--steps", "sampling steps of the reference", kind=int, default=4, at_least=1, at_most=4,
               only_with=("--refine",)),
        Option("--seed", "random seed of the reference", kind=int, default=0, only_with=("--refine",)),
    ),
    examples=(
        'digseg segment photo.jpg -p road -p "a red car" -o out',
        "digseg segment photos -p water --imgsz 256",
        "digseg segment huge.tif -p roof --tile 512",
    ),
)  # fmt: skip
