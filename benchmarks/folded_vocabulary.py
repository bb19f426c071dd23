"""Folded bundles against open ones: bytes, agreement and milliseconds.

Usage: python benchmarks/folded_vocabulary.py -o FOLDER [--checkpoint DIR] [--precision NAME]. Vocabularies: the words of every
painted domain, and the class lists of scripts/bundled_classes. One trace serves all exports; each is verified as an export is.
Then a painted scene is segmented by each, in turns: the open bundle with the vocabulary as prompts (their text is encoded
before), the folded ones without prompts. Medians of one thread on this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine import Engine
from digseg_engine.files import write_json
from digseg_engine.model.folder import BUNDLED
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.vocabulary import Vocabulary
from digseg_engine.worlds.scenes import CLASSES, DOMAINS, scene
from digseg_export.comparison import LIMITS
from digseg_export.progress import StepTimer
from digseg_export.publish import Options, publish, trace

LISTS = Path(__file__).resolve().parent.parent / "scripts" / "bundled_classes"
TURNS = 7


def vocabularies() -> dict[str, tuple[str, ...]]:
    """Names by list."""
    found = {domain: tuple(CLASSES[domain]) for domain in DOMAINS}
    for path in sorted(LISTS.glob("*.json")):
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
        found[path.stem] = tuple(each["name"] for each in classes)
    return found


def medians(engines: dict[str, Engine], names: tuple[str, ...], image: Any) -> dict[str, float]:
    """Milliseconds of a picture by every engine, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(TURNS + 2):
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.segment(image, names if name == "open" else None, labels="strongest")
            if turn > 1:
                seconds[name].append(time.perf_counter() - began)
    return {name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--folder", type=Path, required=True, help="where the bundles go")
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--lists", help="some of the lists, with commas between")
    parser.add_argument("--output-json", type=Path)
    asked = parser.parse_args()
    silent, checkpoint = StepTimer(lambda step: None), load_checkpoint(asked.checkpoint)
    traced, rows = trace(checkpoint, silent), []
    tokenizer = (asked.checkpoint / "tokenizer" / "tokenizer.json").read_bytes()

    def made(name: str, vocabulary: Vocabulary | None) -> tuple[Path, int, float | None]:
        folder = asked.folder / f"{name}-{asked.precision}"
        done = publish(checkpoint, traced, tokenizer, folder, asked.precision, LIMITS[asked.precision], silent,
                       Options(vocabulary=vocabulary))  # fmt: skip
        agreed = [check.label_agreement for check in done.checks if check.stage == "labels"]
        return folder, sum(done.sizes.values()), min(agreed) if agreed else None

    asked.folder.mkdir(parents=True, exist_ok=True)
    opened, open_bytes, _ = made("open", None)
    print(f"open: {open_bytes} bytes", flush=True)
    wanted = asked.lists.split(",") if asked.lists else list(vocabularies())
    for name in wanted:
        names = vocabularies()[name]
        full, full_bytes, agreed = made(name, Vocabulary(names, names))
        labels, labels_bytes, _ = made(f"{name}-labels", Vocabulary(names, names, True))
        engines = {"open": Engine.load(opened, "onnxruntime", threads=1), "full": Engine.load(full, "onnxruntime", threads=1),
                   "labels only": Engine.load(labels, "onnxruntime", threads=1)}  # fmt: skip
        domain = name if name in DOMAINS else "aerial"
        image = scene(91_000, domain, checkpoint.config.image_size, "test").image
        same = float((engines["full"].segment(image).label_map
                      == engines["open"].segment(image, names, labels="strongest").label_map).mean())  # fmt: skip
        row = {"list": name, "names": len(names), "bytes": full_bytes, "bytes labels only": labels_bytes,
               "agreement with PyTorch": agreed, "agreement with the open bundle": round(same, 5),
               "milliseconds": medians(engines, names, np.asarray(image))}  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    body = {"checkpoint": asked.checkpoint.name, "precision": asked.precision, "open bytes": open_bytes, "rows": rows,
            "onnxruntime": version("onnxruntime"), "machine": platform.processor() or platform.machine()}  # fmt: skip
    if asked.output_json:
        write_json(asked.output_json, body)


if __name__ == "__main__":
    main()
