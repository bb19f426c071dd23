"""`digseg ask`: one picture, prompts one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option


def run(**values: Any) -> int:
    from digseg_engine.runtime.asking import Question, ask

    return ask(Question(**values))


COMMAND = Command(
    name="ask",
    summary="Ask about one picture: type prompts one after the other, see areas, scores and the overlay grow.",
    run=run,
    options=(
        Option("photo", "the picture", kind=Path, metavar="PICTURE", needed=True),
        Option("--output -o", "folder of the overlay, which is written anew after every prompt", kind=Path,
               default=Path("out"), metavar="FOLDER"),
        Option("--bundle -b", "exported bundle", kind=Path, metavar="FOLDER",
               shown="$DIGSEG_BUNDLE, else ./digseg-tiny-fp16, else the shipped one"),
        Option("--backend", "auto (measured) or a name that `digseg doctor` lists", default="auto", metavar="NAME"),
        Option("--device", "cpu, cuda or cuda:1", shown="the backend's own", metavar="NAME"),
        Option("--threads", "threads on a CPU", kind=int, at_least=1, shown="the cores of this process"),
        Option("--imgsz --size", "working size in pixels of the longer side", kind=int, shown="the model's own"),
        Option("--threshold", "probability from which a pixel belongs to a mask, between 0 and 1", kind=float, default=0.5,
               at_least=0, at_most=1),
        Option("--batch", "read prompts from standard input, one a line, and print no question", kind=bool, default=False),
        Option("--json", "print one line of JSON for each prompt", kind=bool, default=False, into="as_json"),
    ),
    examples=(
        "digseg ask photo.jpg",
        "digseg ask photo.jpg --batch --json < prompts.txt",
    ),
)  # fmt: skip
