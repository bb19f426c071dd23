"""`digseg segment`: pictures and prompts to masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option

KINDS = ("overlay", "masks", "labels", "json")


def run(**values: Any) -> int:
    from digseg_engine.runtime.pictures import Work, segment_pictures

    return segment_pictures(Work(**values))


def kinds_to_save(text: str) -> tuple[str, ...]:
    """ "masks,json" -> ("masks", "json"). Raises ValueError for another word."""
    words = tuple(word.strip() for word in text.split(","))
    if set(words) - set(KINDS):
        raise ValueError(text)
    return words


OUTPUT = Option("--output -o", "folder for masks and overlays", kind=Path, default=Path("out"), metavar="FOLDER")
MODEL = (  # also of `digseg ask`
    Option("--bundle -b --model", "exported bundle, or OWNER/NAME@REVISION on a hub", kind=Path, metavar="FOLDER",
           shown="$DIGSEG_BUNDLE, else ./digseg-tiny-fp16, else the shipped one"),
    Option("--backend", "auto (measured) or a name that `digseg doctor` lists", default="auto", metavar="NAME"),
    Option("--engines", "folder of TensorRT-RTX plans to run, see digseg-export --format tensorrt-rtx", kind=Path,
           metavar="FOLDER"),
    Option("--device", "cpu, cuda or cuda:1; of OpenVINO also gpu, gpu:1 or npu", shown="the backend's own", metavar="NAME"),
    Option("--threads", "threads on a CPU", kind=int, at_least=1, shown="the cores of this process"),
)  # fmt: skip
THRESHOLD = Option("--threshold", "probability from which a pixel belongs to a mask, between 0 and 1", kind=float,
                   default=0.5, at_least=0, at_most=1)  # fmt: skip
ALL_PROMPTS = Option("--all-prompts", "make masks also for prompts that the model says are not in the picture", kind=bool,
                     default=False)  # fmt: skip

COMMAND = Command(
    name="segment",
    summary="Segment pictures by text: overlay, one mask per prompt, label map and JSON for each.",
    run=run,
    options=(
        Option("photos", "pictures, folders or patterns such as 'photos/*.jpg', also at addresses such as "
               "s3://bucket/photos", metavar="PICTURES", many=True, needed=True),
        Option("--prompt -p", "what to find; repeat for several", many=True),
        Option("--prompts-file", "more prompts, one a line; lines that begin with # are left out", kind=Path,
               metavar="FILE"),
        OUTPUT,
        *MODEL,
        Option("--checkpoint", "checkpoint the bundle came from: for --refine and the torch backends", kind=Path,
               metavar="FOLDER"),
        Option("--imgsz --size", "working size in pixels of the longer side, or of a tile", kind=int,
               shown="the picture's, within the model's range"),
        Option("--tile", "work in tiles of this many pixels, for very large pictures", kind=int),
        Option("--overlap", "share of a tile that neighbours have in common", kind=float, default=0.25, at_least=0,
               at_most=0.5, only_with=("--tile",)),
        Option("--refine", "let the reference go over this many of the most confident masks", kind=int, default=0,
               at_least=0, not_with=("--tile",)),
        Option("--steps", "sampling steps of the reference", kind=int, default=4, at_least=1, at_most=4,
               only_with=("--refine",)),
        Option("--seed", "random seed of the reference", kind=int, default=0, only_with=("--refine",)),
        THRESHOLD,
        ALL_PROMPTS,
        Option("--against", "contrast prompt: competes for pixels and is not returned; repeat for several", metavar="PROMPT",
               many=True),
        Option("--labels", "which mask the label map shows where several meet; with --tile strongest alone",
               choices=("parts", "strongest", "smallest"), shown="parts, with --tile strongest"),
        Option("--only", "write these alone, comma separated; with --tile the JSON is always written", kind=kinds_to_save,
               shown=f"{','.join(KINDS)}; with --tile all but masks", metavar="KIND,...",
               expects=f"some of {', '.join(KINDS)}, with commas between"),
        Option("--recursive -r", "look into folders inside folders too", kind=bool, default=False),
        Option("--skip-existing", "leave pictures alone whose results for the same prompts are there", kind=bool,
               default=False),
        Option("--ray", "share the pictures among processes of this machine (local) or of the Ray cluster at an address",
               metavar="local|ADDRESS"),
        Option("--actors", "processes that segment, each with an engine of its own", kind=int, at_least=1,
               shown="as many as the cores or GPUs allow", only_with=("--ray",)),
        Option("--actor-cpus", "cores of each of them", kind=float, default=1.0, at_least=0.05, only_with=("--ray",)),
        Option("--actor-gpus", "GPUs of each of them, or a share of one", kind=float, at_least=0,
               shown="1 where the cluster has any, 0 with --device cpu", only_with=("--ray",)),
        Option("--json", "print one line of JSON for each picture", kind=bool, default=False, into="as_json",
               not_with=("--quiet",)),
        Option("--quiet -q", "print errors only", kind=bool, default=False),
        Option("--verbose -v", "say which bundle and backend are used", kind=bool, default=False, not_with=("--quiet",)),
    ),
    examples=(
        'digseg segment photo.jpg -p road -p "a red car" -o out',
        "digseg segment photos -p water --imgsz 256 --recursive --skip-existing",
        "digseg segment photo.jpg --prompts-file classes.txt --only masks,json",
        "digseg segment photos -p water -o out --ray local --skip-existing",
        "digseg segment huge.tif -p roof --tile 512",
    ),
)  # fmt: skip
