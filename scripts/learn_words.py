#!/usr/bin/env python3
"""Give a checkpoint a larger vocabulary, with the similarities of a sentence encoder; its student stays as it is.

python scripts/sentence_vectors.py --output lexicon.safetensors      (its text says what it needs)
python scripts/learn_words.py --init digseg-tiny --lexicon lexicon.safetensors --output runs/words
digseg train --init runs/words/checkpoint --data ...                 (the student learns to use the new words)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from digseg_engine.training.loop import StageConfig
from digseg_engine.training.recipes.words import WordsConfig, learn_words

STAGE = StageConfig(
    steps=3000, batch=128, learning_rate=2e-3, warmup=200, weight_decay=0.01, clip=1.0, ema=0.995, save_every=1000
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init", default="digseg-tiny", help="the checkpoint to begin with")
    parser.add_argument("--lexicon", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STAGE.steps)
    parser.add_argument("--vocabulary", type=int, default=8192, help="pieces of the tokenizer")
    parser.add_argument(
        "--keep-names", action="store_true", help="for a start whose student knows the data sets' names"
    )
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    config = WordsConfig(replace(STAGE, steps=given.steps), given.vocabulary, given.keep_names)
    print(f"checkpoint written to {learn_words(given.init, given.lexicon, given.output, config, given.resume)}")


if __name__ == "__main__":
    main()
