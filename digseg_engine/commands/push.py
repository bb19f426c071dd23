"""`digseg push`: a bundle to a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option


def run(**values: Any) -> int:
    from digseg_engine.sharing.push import Push, push

    return push(Push(**values))


COMMAND = Command(
    name="push",
    summary="Verify a bundle and upload it to a hub, with a model card written from its manifest.",
    run=run,
    options=(
        Option("bundle", "bundle to push", kind=Path, needed=True),
        Option("repository", "where to: OWNER/NAME, made if it is not there", needed=True, metavar="OWNER/NAME"),
        Option("--revision", "branch to push to, made if it is not there", shown="main", metavar="BRANCH"),
        Option("--private", "make a new repository a private one", kind=bool, default=False),
        Option("--message", "what the commit says", shown="the bundle's name and hash"),
        Option(
            "--bench",
            "what `digseg bench BUNDLE --json FILE` wrote, for the card's table of speeds",
            kind=Path,
            metavar="FILE",
        ),
        Option("--dry-run", "verify, print the model card, upload nothing", kind=bool, default=False),
    ),
    examples=(
        "digseg push mine-fp16 acme/roads --private",
        "digseg push mine-fp16 acme/roads --bench bench.json --dry-run",
    ),
)
