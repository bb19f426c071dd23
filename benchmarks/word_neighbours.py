"""Does a text encoder place everyday words beside the class that a sentence encoder places them beside?

    python scripts/sentence_vectors.py --output lexicon.safetensors ...     (its text says what it needs)
    python -m benchmarks.word_neighbours lexicon.safetensors digseg-tiny runs/words/checkpoint

Classes are the names of ADE20K and COCO-Stuff that are one word of the lexicon; asked is every other single word of which the
sentence encoder is sure (`SURE`, `AHEAD`). Reported: the share of them whose nearest class is the same one, and that has it among
the nearest three. Chance is one over the number of classes. Distances are those of whitened features, as a student reads them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from digseg_engine.files import write_json
from digseg_engine.model.folder import find_start
from digseg_engine.model.pretrained import Checkpoint, load_checkpoint
from digseg_engine.text import pad_tokens
from digseg_engine.training.recipes.words import read_lexicon

OUTPUT = Path(__file__).resolve().parent / "results" / "word-neighbours.json"
TABLES = Path(__file__).resolve().parents[1] / "digseg_engine" / "assets" / "datasets"
SURE, AHEAD = 0.45, 0.05  # cosine to the nearest class, and how much more than to the second
BATCH = 256


@dataclass(frozen=True)
class Questions:
    """Class names, words, and for every word the row of the class that the sentence encoder says."""

    names: list[str]
    words: list[str]
    answers: Tensor


def questions(lexicon: Path) -> Questions:
    """Raises InputError for a file that is no lexicon."""
    known = read_lexicon(lexicon)
    rows = {text: i for i, text in enumerate(known.texts)}
    tables = [json.loads((TABLES / f"{file}.json").read_text(encoding="utf-8")) for file in ("ade20k", "coco-stuff")]
    classes = [entry["name"] for table in tables for entry in table["classes"]]
    names = [name for name in dict.fromkeys(classes) if name in rows]
    others = [text for text in known.texts if " " not in text and text not in names]
    vectors = known.centred()
    cosines = vectors[[rows[text] for text in others]] @ vectors[[rows[name] for name in names]].T
    best, second = cosines.topk(2).values.unbind(1)
    sure = ((best > SURE) & (best - second > AHEAD)).nonzero()[:, 0]
    return Questions(names, [others[i] for i in sure.tolist()], cosines[sure].argmax(1))


@torch.no_grad()
def features(checkpoint: Checkpoint, texts: list[str]) -> Tensor:
    """Whitened features of the last word's token and of the end, side by side [K, 2 D]."""
    student, found = checkpoint.student, []
    for start in range(0, len(texts), BATCH):
        ids, mask = map(
            torch.from_numpy, pad_tokens([checkpoint.tokenizer.ids(text) for text in texts[start : start + BATCH]])
        )
        read = (checkpoint.text_encoder(ids).last_hidden_state - student.text_centre) @ student.text_whiten
        row, end = torch.arange(len(ids)), mask.sum(1) - 1
        found.append(torch.cat([read[row, end], read[row, end - 1]], dim=-1))
    return torch.cat(found)


def measure(checkpoint: Checkpoint, asked: Questions) -> dict[str, float]:
    """Shares of the words that find their class."""
    classes, words = features(checkpoint, asked.names), features(checkpoint, asked.words)
    centre = torch.cat([classes, words]).mean(0)
    cosines = F.normalize(words - centre, dim=-1) @ F.normalize(classes - centre, dim=-1).T
    hits = cosines.topk(3).indices == asked.answers[:, None]
    return {
        "nearest": round(float(hits[:, 0].float().mean()), 4),
        "nearest_three": round(float(hits.any(1).float().mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lexicon", type=Path)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--json", type=Path, default=OUTPUT)
    given = parser.parse_args()
    asked = questions(given.lexicon)
    results = []
    for name in given.checkpoints:
        folder = Path(name).absolute()
        title = name if folder.name != "checkpoint" else folder.parent.name
        row = {"checkpoint": title, **measure(load_checkpoint(find_start(name)), asked)}
        results.append(row)
        print(json.dumps(row), flush=True)
    counts = {"classes": len(asked.names), "words": len(asked.words)}
    write_json(given.json, {"date": date.today().isoformat(), **counts, "results": results})
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
