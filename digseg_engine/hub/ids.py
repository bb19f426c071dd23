"""Names of bundles on a hub: `owner/name` or `owner/name@revision`; a revision is a branch, a tag or a commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
ID = re.compile(rf"({PART})/({PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


@dataclass(frozen=True)
class HubId:
    """A repository and a revision of it. Neither owner nor name can lead out of a folder."""

    owner: str
    name: str
    revision: str = MAIN

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def hub_id(model: Path | str) -> HubId | None:
    """What a name means on a hub; None for what can only be a path. Says nothing of whether it is there."""
    found = ID.fullmatch(model.as_posix() if isinstance(model, Path) else model)
    if found is None or ".." in found[0] or "--" in f"{found[1]}{found[2]}":
        return None
    return HubId(found[1], found[2], found[3] or MAIN)
