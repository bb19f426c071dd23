"""Arguments of commands to pictures, output names and folders. Torch-free."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from digseg_engine.errors import InputError, UsageError


def find_pictures(arguments: list[str]) -> list[Path]:
    """Files named, found in folders (not deeper) or matched by patterns, each once, in order.

    Raises InputError when a folder or pattern yields nothing; a named file is taken as it is and judged when read.
    """
    from digseg_engine.images import SUFFIXES

    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"folder {path} holds no picture; expected files ending in {', '.join(SUFFIXES)}")
        elif glob.has_magic(argument) and not path.exists():
            inside = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())
            if not inside:
                raise InputError(
                    f"pattern {argument} matches no file; check it, or quote it for this program to expand"
                )
        else:
            inside = [path]
        found.update(dict.fromkeys(inside))
    return list(found)


def check_output(folder: Path) -> None:
    """Raises UsageError when `folder` is a file or cannot be written, before any work is done."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output {folder} is a file; expected a folder; choose another with -o")
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise UsageError(f"cannot write to {parent}; choose another output folder with -o")
