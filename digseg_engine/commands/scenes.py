"""`digseg scenes`: labelled test pictures."""

from __future__ import annotations

from pathlib import Path

from digseg_engine.commands.declare import Command, Option


def run(output: Path, domain: str, count: int, size: int, seed: int) -> None:
    from digseg_engine.extras import require
    from digseg_engine.worlds.scenes import DOMAINS

    if domain in ("all", "textures"):  # cut from photographs of scikit-image
        require("digseg scenes", "train", modules=("skimage",))
    from digseg_engine.runtime.inputs import check_output
    from digseg_engine.worlds.painted import write_scenes

    check_output(output)
    for path, names in write_scenes(output, DOMAINS if domain == "all" else (domain,), range(seed, seed + count), size):
        print(f"{path}: {', '.join(names)}")


COMMAND = Command(
    name="scenes",
    summary="Paint labelled test pictures (PNG) to try the model on.",
    run=run,
    options=(
        Option("--output -o", "folder for the pictures", kind=Path, default=Path("scenes"), metavar="FOLDER"),
        Option("--domain", "objects, textures, microscopy, aerial, crops or all", default="all", metavar="NAME"),
        Option("--count", "pictures per domain", kind=int, default=1, at_least=1),
        Option("--size --imgsz", "pixels per side", kind=int, default=256, at_least=16, at_most=4096),
        Option("--seed", "number of the first scene", kind=int, default=0, at_least=0),
    ),
    examples=("digseg scenes -o scenes --domain aerial --count 5",),
)
