"""Words that a fine-tuned model never read in any class file, beside the names it learned: mean IoU on CamVid's test split.

    digseg train --init digseg-tiny --data $DIGSEG_REALDATA/camvid --size 256 -o runs/camvid
    python -m benchmarks.unread_words runs/camvid/checkpoint

The twenty words were written down before any of them was asked. A question names all eleven classes; in the first round every
class goes by its first word, in the second by its second one, so that words compete with words as they would for a person who
knows no class file. The program refuses words that a class file beside CamVid's holds.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from digseg_engine.data.query import Query
from digseg_engine.evaluation.predictors import Predict, Rule, student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures, Sample
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import write_json
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.runtime.machine import processor

OUTPUT = Path(__file__).resolve().parent / "results" / "unread-words.json"
WORDS = {
    "sky": ("heavens", "skies"), "building": ("edifice", "apartment block"), "pole": ("mast", "lamppost"),
    "road": ("highway", "roadway"), "pavement": ("footpath", "walkway"), "tree": ("foliage", "oak"),
    "sign": ("signboard", "road sign"), "fence": ("railing",), "car": ("automobile", "motorcar"),
    "pedestrian": ("passer-by", "walker"), "bicyclist": ("bike rider",),
}  # fmt: skip
ROUNDS = 2


@dataclass(frozen=True)
class Renamed:
    """A test set whose classes go by other words; pictures and truth are the same."""

    samples: LabelledPictures
    words: dict[str, str]
    name: str

    @property
    def queries(self) -> Sequence[Query]:
        return [Query(self.words[query.name], query.name) for query in self.samples.queries]

    @property
    def rule(self) -> Rule:
        return self.samples.rule

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]


def read_names(folder: Path) -> set[str]:
    """Every name and synonym of the class files of the data sets beside one another in a folder."""
    found: set[str] = set()
    for path in sorted(folder.glob("*/classes.json")):
        for entry in json.loads(path.read_text(encoding="utf-8"))["classes"]:
            found |= {entry["name"], *entry.get("synonyms", ())}
    return found


def measure(predict: Predict, samples: LabelledPictures) -> dict[str, Any]:
    """IoU of every class by its trained name and by every word; both means over the same classes."""
    names = [query.name for query in samples.queries]
    plain = evaluate(predict, samples).together.iou()
    rows, means = [], []
    for number in range(ROUNDS):
        words = {name: WORDS[name][min(number, len(WORDS[name]) - 1)] for name in names}
        said = evaluate(predict, Renamed(samples, words, f"round {number + 1}")).together.iou()
        means.append(sum(said[name] for name in names) / len(names))
        rows += [{"class": name, "word": words[name], "trained_name": round(plain[name], 4), "iou": round(said[name], 4)}
                 for name in names if number < len(WORDS[name])]  # fmt: skip
    trained, unread = sum(plain[name] for name in names) / len(names), sum(means) / len(means)
    return {"trained_names": round(trained, 4), "unread_words": round(unread, 4), "share": round(unread / trained, 4),
            "pictures": len(samples), "words": rows}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="+", help="fine-tuned on CamVid")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DIGSEG_REALDATA", ".")) / "camvid")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--count", type=int, default=0, help="test pictures; 0: all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    asked = {word for words in WORDS.values() for word in words}
    if known := asked & read_names(given.data.parent):
        raise SystemExit(f"class files in {given.data.parent} hold {', '.join(sorted(known))}: not words never read")
    results = []
    for folder in given.checkpoint:
        predict = student_predictor(load_checkpoint(folder), given.size, readout=False)
        results.append({"checkpoint": folder.name if folder.name != "checkpoint" else folder.parent.name,
                        **measure(predict, LabelledPictures(given.data, given.count, split="test"))})  # fmt: skip
        print(json.dumps({key: value for key, value in results[-1].items() if key != "words"}), flush=True)
    write_json(
        given.output, {"date": str(date.today()), "processor": processor(), "size": given.size, "results": results}
    )


if __name__ == "__main__":
    main()
