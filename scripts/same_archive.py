"""Rewrite a source archive so that it holds nothing of the machine it was made on: members in the order of their names, no owner,
plain modes, the times of SOURCE_DATE_EPOCH. setuptools takes those of the working copy.

    SOURCE_DATE_EPOCH=... python scripts/same_archive.py ARCHIVE.tar.gz
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path


def rewrite(path: Path, when: int) -> None:
    """In place."""
    with tarfile.open(path, "r:gz") as old:
        members = sorted(old.getmembers(), key=lambda member: member.name)
        bodies = {member.name: old.extractfile(member).read() for member in members if member.isreg()}  # type: ignore[union-attr]
    room = io.BytesIO()
    with tarfile.open(fileobj=room, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in members:
            about = tarfile.TarInfo(member.name)
            about.type, about.mtime = member.type, when
            about.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            body = bodies.get(member.name, b"")
            about.size = len(body)
            new.addfile(about, io.BytesIO(body))
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=when) as packed:
        packed.write(room.getvalue())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(Path(name), int(os.environ["SOURCE_DATE_EPOCH"]))
