"""Prints the lowest versions that pyproject.toml allows, as constraints: what the job at lowest versions installs.

Usage: python scripts/lowest.py [NAME=VERSION ...] > lowest.txt     a pair replaces the lower bound of that package
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lower_bounds(text: str, extra: str = "dev") -> dict[str, str]:
    """Package name -> lowest version, of everything that the extra brings. The highest bound where several are given."""
    project = tomllib.loads(text)["project"]
    found: dict[str, str] = {}
    for line in [*project["dependencies"], *requirements_of(project["optional-dependencies"], extra, project["name"])]:
        match = re.match(r"([\w.-]+)(?:\[[\w,-]*\])?>=([\w.]+)", line)
        if match and _numbers(match[2]) > _numbers(found.get(match[1], "0")):
            found[match[1]] = match[2]
    return found


def requirements_of(extras: dict[str, list[str]], extra: str, project: str) -> list[str]:
    """The requirements of an extra, those of the project's own extras that it names included."""
    lines = []
    for line in extras[extra]:
        own = re.match(rf"{re.escape(project)}\[([\w,-]+)\]", line)
        lines += (
            [more for name in own[1].split(",") for more in requirements_of(extras, name, project)] if own else [line]
        )
    return lines


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


if __name__ == "__main__":
    chosen = lower_bounds(PYPROJECT.read_text()) | dict(pair.split("=", 1) for pair in sys.argv[1:])
    print("\n".join(f"{name}=={version}" for name, version in sorted(chosen.items())))
