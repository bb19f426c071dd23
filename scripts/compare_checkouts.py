"""Shows that the public behaviour of two checkouts is the same: help texts, bundle bytes, results, figures.

Usage: python scripts/compare_checkouts.py OLD NEW [--checkpoint FOLDER] [--bundle FOLDER] [--only WORD] [--listed ITEM ...]
Runs every item in both checkouts, each in a folder of its own with a cache of its own, and prints one line for it: equal,
or differs with the first difference. Exit code 1 when anything differs that is not `--listed` (an item's name or its start).
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMANDS = ("segment", "doctor", "data", "train", "distill", "eval", "scenes", "completion")
PICTURES = ("aerial.png", "cells.png", "crops.png", "shapes.png")
PROMPTS = ("road", "cell", "leaf", "red circle", "zebra")
VOLATILE = {"timings", "seconds", "version", "digseg_engine", "created"}  # keys of JSON that no two runs share
Found = dict[str, str]  # what an item gave, by part: the text itself, or the hash of a file


@dataclass(frozen=True)
class Checkout:
    """One side: its source tree, and the folder its commands run in."""

    root: Path
    folder: Path

    def run(self, program: str, *words: str | Path) -> str:
        """What `digseg` or `digseg-export` of this checkout prints. Raises SystemExit when it fails."""
        module = {"digseg": "digseg_engine.cli", "digseg-export": "digseg_export.cli"}[program]
        start = f"import sys; from {module} import main; sys.argv[0] = {program!r}; sys.exit(main())"
        path = os.pathsep.join(str(self.root / name) for name in ("", "export", "triton_kernels"))
        environment = {**os.environ, "PYTHONPATH": path, "DIGSEG_CACHE": str(self.folder / "cache"), "COLUMNS": "100"}
        done = subprocess.run([sys.executable, "-c", start, *map(str, words)], cwd=self.folder, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            raise SystemExit(
                f"{program} {' '.join(map(str, words))} of {self.root} failed: {done.stderr.strip()[-400:]}"
            )
        return done.stdout


def settled(value: Any) -> Any:
    """JSON without what changes from run to run."""
    if isinstance(value, dict):
        return {key: settled(inner) for key, inner in value.items() if key not in VOLATILE}
    return [settled(inner) for inner in value] if isinstance(value, list) else value


def contents(folder: Path, exact: bool) -> Found:
    """Every file of a folder. exact: byte by byte but for the line that says when; else JSON without its times and versions."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        body = path.read_bytes()
        text = hashlib.sha256(body).hexdigest()
        if path.suffix == ".json" and exact:
            text = "\n".join(
                line for line in body.decode("utf-8").splitlines() if not line.lstrip().startswith('"created"')
            )
        elif path.suffix == ".json":
            text = json.dumps(settled(json.loads(body)), indent=1, sort_keys=True)
        found[str(path.relative_to(folder))] = text
    return found


def items(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Checkout], Found]]]:
    """(name, what to do in a checkout) of everything that is compared."""
    yield "help digseg", lambda side: {"": side.run("digseg", "--help")}
    for name in COMMANDS:
        yield f"help digseg {name}", lambda side, name=name: {"": side.run("digseg", name, "--help")}
    yield "help digseg-export", lambda side: {"": side.run("digseg-export", "--help")}

    def exported(side: Checkout) -> Found:
        side.run("digseg-export", options.checkpoint, "--precision", "fp32", "-o", "exported", "--quiet")
        return contents(side.folder / "exported", exact=True)

    def segmented(side: Checkout) -> Found:
        for name in PICTURES:
            shutil.copy(options.new / "examples" / name, side.folder / name)
        prompts = [word for prompt in PROMPTS for word in ("-p", prompt)]
        side.run(
            "digseg", "segment", *PICTURES, *prompts, "-b", options.bundle, "--backend", "onnxruntime", "-o", "masks"
        )
        return contents(side.folder / "masks", exact=False)

    def scored(side: Checkout) -> Found:
        side.run("digseg", "eval", "--model", options.bundle, "--count", "2", "--report", "scores.json")
        body = json.loads((side.folder / "scores.json").read_text(encoding="utf-8"))
        return {"scores.json": json.dumps(settled(body), indent=1, sort_keys=True)}

    yield f"bytes of {options.checkpoint.name} exported in fp32", exported
    yield f"results of {options.bundle.name} on {len(PICTURES)} pictures", segmented
    yield f"figures of {options.bundle.name} on 2 scenes of each domain", scored


def difference(old: Found, new: Found) -> str:
    """The first difference in words; "" where there is none."""
    for part in sorted({*old, *new}):
        if part not in old or part not in new:
            return f"{part} is only in the {'new' if part in new else 'old'} one"
        if old[part] != new[part]:
            lines = difflib.unified_diff(old[part].splitlines(), new[part].splitlines(), lineterm="", n=0)
            shown = " ".join(" ".join(line.split()) for line in list(lines)[3:7])
            return f"{part}: {shown}".removeprefix(": ")[:300]
    return ""


def main() -> int:
    """Compare, print a line for each item, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="what is exported [default: the bundled one of NEW]")
    parser.add_argument("--bundle", type=Path, help="what is run [default: the shipped one of NEW]")
    parser.add_argument(
        "--listed", action="append", default=[], metavar="ITEM", help="may differ: an item's name or its start"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="the items whose name holds it")
    options = parser.parse_args()
    assets = options.new.resolve() / "digseg_engine" / "assets"
    options.checkpoint = (options.checkpoint or assets / "digseg-tiny").resolve()
    options.bundle = (options.bundle or assets / "digseg-tiny-fp16").resolve()
    unexpected = 0
    with tempfile.TemporaryDirectory() as scratch:
        sides = []
        for name in ("old", "new"):
            (Path(scratch) / name).mkdir()
            sides.append(Checkout(getattr(options, name).resolve(), Path(scratch) / name))
        for name, action in items(options):
            if options.only not in name:
                continue
            found = difference(*(action(side) for side in sides))
            listed = any(name.startswith(start) for start in options.listed)
            unexpected += bool(found) and not listed
            print(f"{'differs' if found else 'equal  '}  {name}{' (listed)' if found and listed else ''}"
                  f"{': ' + found if found else ''}", flush=True)  # fmt: skip
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
