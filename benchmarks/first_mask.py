"""From nothing to the masks of two real pictures: seconds and megabytes of the two lines a stranger types.

    DIGSEG_REALDATA=FOLDER python benchmarks/first_mask.py

Makes an empty virtual environment, then runs in it `pip install '.[cpu]'` and, from another folder, `digseg segment` on a
real picture of cell nuclei and on one from above, the first of their test splits that show what is asked for, with no bundle
named. Says what each took, how large the environment is, that PyTorch is not in it, and how good the masks are (IoU with the
picture's labels). What pip downloads comes from where it is set up to; a slow network changes the first figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
import venv
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.data.datasets import open_dataset
from digseg_engine.files import write_json
from digseg_engine.runtime.machine import processor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
ASKED = {"nuclei": "nucleus", "dubai": "building"}


def size_of(folder: Path) -> float:
    """MB of all files."""
    return round(sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def timed(*command: str | Path, cwd: Path) -> float:
    """Seconds of a command. Raises SystemExit with what it said when it fails."""
    words = [str(word) for word in command]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "DIGSEG_"))}
    began = time.perf_counter()
    done = subprocess.run(
        words, cwd=cwd, env={**environment, "XDG_CACHE_HOME": str(cwd / "cache")}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {done.stderr[-500:]}")
    return round(time.perf_counter() - began, 1)


def first_of(data: Path, name: str) -> tuple[Path, NDArray[np.bool_]]:
    """The first test picture of a set in which its prompt is, and where."""
    dataset = open_dataset(data / name, split="test")
    asked = dataset.names.index(ASKED[name])
    for number, record in enumerate(dataset.records):
        truth = dataset[number].ids == asked
        if truth.any():
            return Path(str(record.image)), truth
    raise SystemExit(f"no test picture of {data / name} has {ASKED[name]!r}")


def first_mask(program: Path, data: Path, name: str, room: Path) -> dict[str, Any]:
    """One line of a stranger: a real picture, a prompt, nothing else."""
    picture, truth = first_of(data, name)
    out = room / name
    seconds = timed(program, "segment", picture, "-p", ASKED[name], "-o", out, cwd=room)
    (path,) = out.glob("*.mask.*.png")
    with Image.open(path) as image:
        mask = np.asarray(image.convert("L")) > 127
    overlap = float((mask & truth).sum() / (mask | truth).sum())
    return {"picture": f"{name}/{picture.name}", "prompt": ASKED[name], "pixels": list(truth.shape[::-1]), "seconds": seconds,
            "iou": round(overlap, 3)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "first-mask.json")
    given = parser.parse_args(arguments)
    real = os.environ.get("DIGSEG_REALDATA")
    if not real:
        raise SystemExit(f"set DIGSEG_REALDATA to a folder with {' and '.join(ASKED)} in the layout of docs/data.md")
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        venv.create(room / "venv", with_pip=True)
        before, bin_ = size_of(room / "venv"), room / "venv" / "bin"
        seconds = timed(bin_ / "python", "-m", "pip", "install", "--no-cache-dir", f"{ROOT}[cpu]", cwd=room)
        body = {"install": {"seconds": seconds, "mb": round(size_of(room / "venv") - before, 1)}}
        listed = subprocess.run(
            [bin_ / "python", "-m", "pip", "list", "--format", "json"], capture_output=True, text=True
        )
        body["install"]["packages"] = sorted(row["name"] for row in json.loads(listed.stdout))
        pictures = [first_mask(bin_ / "digseg", Path(real), name, room) for name in ASKED]
    if "torch" in body["install"]["packages"]:
        raise SystemExit("PyTorch was installed with [cpu]")
    write_json(given.output, {**body, "pictures": pictures, "processor": processor(), "date": str(date.today())})
    print(f"installed in {seconds} s, {body['install']['mb']} MB, without PyTorch")
    for row in pictures:
        print(f"{row['picture']}, {row['prompt']!r}: {row['seconds']} s, IoU {row['iou']}")


if __name__ == "__main__":
    main()
