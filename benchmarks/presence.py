#!/usr/bin/env python3
"""How well a checkpoint's presence readout tells what is in a picture: threshold from validation pictures, figures on test ones.

    python benchmarks/presence.py [--checkpoint DIR] [--data scenes FOLDER ...] [--count 100] [--output FILE]

The threshold of a set is the largest logit that keeps `RECALL` of what is there in its validation pictures (scenes of other
numbers than the tests'; the val split of a folder); the shared one is the smallest of all sets, as a bundle for all of them would
have. Folders are asked for their classes and for what their classes.json calls absent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from digseg_engine.console import Pace
from digseg_engine.data.wordings import encode_text
from digseg_engine.evaluation.metrics import matthews
from digseg_engine.evaluation.protocols import VALIDATION_SEED, LabelledPictures, Samples, TestScenes
from digseg_engine.files import write_json
from digseg_engine.images import fit
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.worlds.scenes import DOMAINS, is_scenes

RECALL = 0.995
Pairs = tuple[NDArray[np.float64], NDArray[np.bool_]]  # logits and truth of all (picture, prompt) pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED)
    parser.add_argument("--data", nargs="*", default=["scenes"], help="scenes, or folders with a val and a test split")
    parser.add_argument("--count", type=int, default=100, help="pictures of every set, at most")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    checkpoint = load_checkpoint(given.checkpoint)
    asked = [pair for data in given.data for pair in sets(data, given.count, checkpoint.config.image_size)]
    logits = {test.name: (read(checkpoint, held_out, absent), read(checkpoint, test, absent))
              for held_out, test, absent in asked}  # fmt: skip
    body = {
        "checkpoint": given.checkpoint.name,
        "size": checkpoint.config.image_size,
        "pictures": given.count,
        **judge(logits),
    }
    print(json.dumps(body, indent=1))
    if given.output is not None:
        write_json(given.output, body)


def sets(data: str, count: int, size: int) -> Iterator[tuple[Samples, Samples, tuple[str, ...]]]:
    """(validation set, test set, what is asked beside the classes) of everything that `data` names."""
    if is_scenes(data):
        for domain in DOMAINS:
            yield TestScenes(domain, count, size, first=VALIDATION_SEED), TestScenes(domain, count, size), ()
        return
    held_out, test = (LabelledPictures(data, count, split=split) for split in ("val", "test"))
    test.name = Path(data).name
    yield held_out, test, test.dataset.table.absent


@torch.no_grad()
def read(checkpoint: Checkpoint, samples: Samples, absent: tuple[str, ...]) -> Pairs:
    """Presence logits of every picture and prompt."""
    student, prompts = checkpoint.student, [*(query.text for query in samples.queries), *absent]
    text = student.fold_text(*encode_text(checkpoint.text_encoder, checkpoint.tokenizer, prompts))
    pace, said, truth = Pace(f"presence in {samples.name}", len(samples)), [], []
    for i in range(len(samples)):
        sample = samples[i]
        pixels = torch.from_numpy(fit(sample.image, checkpoint.config.image_size, checkpoint.stride).pixels)
        encoding = student.encode(*student.describe(pixels, encode_image(checkpoint.vae, pixels)))
        said.append(student.presence(encoding, text)[0].double().numpy())
        truth.append(np.concatenate([sample.truth.any((1, 2)), np.zeros(len(absent), bool)]))
        pace()
    return np.concatenate(said), np.concatenate(truth)


def judge(logits: Mapping[str, tuple[Pairs, Pairs]]) -> dict[str, Any]:
    """Figures of every test set at its own threshold and at the shared one."""
    own = {name: kept(*held_out) for name, (held_out, _) in logits.items()}
    shared = min(own.values())
    rows = {name: {"own threshold": figures(*test, own[name]), "shared threshold": figures(*test, shared)}
            for name, (_, test) in logits.items()}  # fmt: skip
    return {"recall asked for": RECALL, "shared threshold": shared, "sets": rows}


def kept(said: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The largest threshold that keeps `RECALL` of what is there."""
    there = np.sort(said[truth])
    return float(there[len(there) - int(np.ceil(RECALL * len(there)))])


def figures(said: NDArray[np.float64], truth: NDArray[np.bool_], threshold: float) -> dict[str, float]:
    found = said >= threshold
    table = np.bincount(2 * truth + found, minlength=4).reshape(2, 2)
    return {"threshold": threshold, "MCC": matthews(table), "recall": float(found[truth].mean()),
            "precision": float(truth[found].mean()), "turned away": float((~found[~truth]).mean()),
            "present": int(truth.sum()), "absent": int((~truth).sum())}  # fmt: skip


if __name__ == "__main__":
    main()
