"""`digseg ask`: one picture, encoded once, prompts one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.segment import ALL_PROMPTS, MODEL, OUTPUT, THRESHOLD


def run(**values: Any) -> int:
    from digseg_engine.runtime.asking import Question, ask

    return ask(Question(**values))


COMMAND = Command(
    name="ask",
    summary="Ask about one picture, encoded once: type prompts, see areas, scores, milliseconds and the overlay grow.",
    run=run,
    options=(
        Option("photo", "the picture", kind=Path, metavar="PICTURE", needed=True),
        OUTPUT,
        *MODEL,
        Option("--imgsz --size", "working size in pixels of the longer side", kind=int,
               shown="the picture's, within the model's range"),
        THRESHOLD,
        ALL_PROMPTS,
        Option("--batch", "read prompts from standard input, one a line, and print no question", kind=bool, default=False),
        Option("--json", "print one line of JSON for each prompt", kind=bool, default=False, into="as_json"),
    ),
    examples=(
        "digseg ask photo.jpg",
        "digseg ask photo.jpg --batch --json < prompts.txt",
    ),
)  # fmt: skip
