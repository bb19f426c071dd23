"""The presence threshold of a bundle: below it a prompt is answered "not there", chosen on labelled pictures.

It is the largest logit that keeps `RECALL` of the prompts that are there, measured with the written graphs as a CPU runs
them, so that what precision costs is in it. A recall needs enough prompts to be one: with fewer than `ENOUGH` there is no
threshold, and nothing is turned away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.contract import IMAGE_ENCODER, PRESENCE, TEXT_ENCODER
from digseg_engine.errors import VerificationError
from digseg_engine.evaluation.metrics import matthews
from digseg_engine.images import fit
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.worlds.scenes import CLASSES, DOMAINS, scene
from digseg_export.comparison import Array
from digseg_export.disk_offload import Offloaded, working_size
from digseg_export.own_pictures import OwnPictures, own_pictures
from digseg_export.verify import Graphs

RECALL = 0.995
ENOUGH = 200  # pairs of a picture and a prompt that is in it, below which one hidden thing would be over 0.5 %
GRID = 100  # thresholds are rounded down to 1 / GRID, so that no other rounding of the same graph falls below
SCENES_PER_DOMAIN, OWN_PICTURES, PROMPTS = 40, 256, 16


@dataclass(frozen=True)
class Asked:
    """Pictures [B, 3, H, W], what is asked about each of them, and which of it is there [B, K]."""

    image: Array
    prompts: tuple[str, ...]
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """What a threshold is chosen on: `data` says in words what it is."""

    asked: Callable[[], Iterator[Asked]]
    data: str


def labelled(checkpoint: Checkpoint, *folders: Path | None) -> Labelled:
    """The first folder that is labelled, else painted scenes of every domain, asked for all its words. Of a large model one
    scene: it is too slow on a CPU for more."""
    for folder in folders:
        if folder is not None and not (folder / "prompts.txt").is_file():
            own = own_pictures(folder, OWN_PICTURES, PROMPTS)
            return Labelled(partial(_own, checkpoint, own), own.origin)
    count, domains = (1, DOMAINS[:1]) if isinstance(checkpoint, Offloaded) else (SCENES_PER_DOMAIN, DOMAINS)
    words = f"{count} test scene{'s' * (count > 1)} of each of {', '.join(domains)}, asked for all words of its domain"
    return Labelled(partial(_scenes, checkpoint, domains, count), words)


def _scenes(checkpoint: Checkpoint, domains: tuple[str, ...], count: int) -> Iterator[Asked]:
    size = working_size(checkpoint)
    for domain in domains:
        for i in range(count):
            painted = scene(80_000 + i, domain, size, "test")
            there = set(painted.names())
            yield Asked(fit(painted.image, size, checkpoint.stride).pixels, CLASSES[domain],
                        np.array([[name in there for name in CLASSES[domain]]]))  # fmt: skip


def _own(checkpoint: Checkpoint, own: OwnPictures) -> Iterator[Asked]:
    size = working_size(checkpoint)
    for example in own.examples:
        prompts = tuple(dict.fromkeys(example.prompts))
        present = np.arange(len(prompts)) < example.labelled
        yield Asked(fit(example.read(), size, checkpoint.stride).pixels, prompts, present[None])


def choose_threshold(
    checkpoint: Checkpoint, graphs: Graphs, data: Labelled, progress: Callable[[str], None]
) -> dict[str, Any]:  # fmt: skip
    """`presence` of the manifest. Raises VerificationError when a logit is not finite."""
    logits: list[Array] = []
    truth: list[NDArray[np.bool_]] = []
    text_of = lru_cache(maxsize=8)(lambda prompts: _text(checkpoint, graphs, prompts))
    for number, asked in enumerate(data.asked()):
        progress(f"presence in picture {number + 1}")
        (encoding,) = graphs.run(IMAGE_ENCODER, {"image": asked.image})
        (found,) = graphs.run(PRESENCE, {"encoding": encoding, **text_of(asked.prompts)})
        logits.append(found.ravel())
        truth.append(asked.present.ravel())
    return decide(np.concatenate(logits), np.concatenate(truth), data.data)


def _text(checkpoint: Checkpoint, graphs: Graphs, prompts: tuple[str, ...]) -> dict[str, Array]:
    ids, mask = checkpoint.tokenizer.encode(prompts)
    keys, values = graphs.run(TEXT_ENCODER, {"token_ids": ids, "token_mask": mask})
    return {"text_keys": keys, "text_values": values, "token_mask": mask}


def in_words(stated: dict[str, Any]) -> str:
    """`presence` of a manifest as one line."""
    pairs = stated["pairs"]
    if stated["threshold"] is None:
        return f"no prompt is turned away: {stated['reason']}"
    kept = (
        f"threshold {stated['threshold']:g} keeps {stated['recall']:.1%} of {pairs['present']} prompts that are there"
    )
    if stated["turned_away"] is None:
        return kept
    return f"{kept}, turns away {stated['turned_away']:.1%} of {pairs['absent']} that are not"


def decide(logits: Array, present: NDArray[np.bool_], data: str) -> dict[str, Any]:
    """Presence logits [N] and the truth [N] -> threshold, what was asked of it, what it does on these pairs, and the data."""
    if not np.isfinite(logits).all():
        raise VerificationError("presence.onnx gives NaN or infinity on labelled pictures; expected finite numbers; nothing was "
                                "published; try --precision fp32")  # fmt: skip
    there = np.sort(logits[present].astype(np.float64))
    missed = len(there) - int(np.ceil(RECALL * len(there)))
    threshold = float(np.floor(there[missed] * GRID) / GRID) if len(there) >= ENOUGH else None
    kept = np.ones(len(logits), np.bool_) if threshold is None else logits >= threshold
    table = np.bincount(2 * present + kept, minlength=4).reshape(2, 2)
    mcc = matthews(table)
    found = {"wanted_recall": RECALL, "recall": float(kept[present].mean()) if len(there) else None,
             "turned_away": float((~kept[~present]).mean()) if len(there) < len(present) else None,
             "mcc": None if np.isnan(mcc) else mcc,
             "pairs": {"present": len(there), "absent": len(present) - len(there)}, "data": data}  # fmt: skip
    if threshold is None:
        found["reason"] = (
            f"{len(there)} pairs with something there, at least {ENOUGH} expected: too few for a recall, so no prompt is turned "
            "away; give labelled pictures with --verify-data FOLDER"
        )
    return {"threshold": threshold, **found}
