"""The presence threshold of a bundle: below it a prompt is answered "not there", chosen on labelled pictures.

It is the largest logit that keeps `RECALL` of the prompts that are there, of all pictures and of every set of them, measured with
the written graphs as a CPU runs them, so that what precision costs is in it. A recall needs enough prompts to be one: a set with
fewer than `ENOUGH` counts among all alone, where otherwise the one picture that a model cannot read would let everything
through; with fewer than so many in all there is no threshold, and nothing is turned away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.contract import IMAGE_ENCODER, PRESENCE, TEXT_ENCODER
from digseg_engine.data.shares import Share
from digseg_engine.errors import InputError, VerificationError
from digseg_engine.evaluation.metrics import matthews
from digseg_engine.images import fit
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.worlds.scenes import CLASSES, DOMAINS, scene
from digseg_export.calibration import painted_domains
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
    """A set of pictures that a threshold is chosen on: `data` says in words what it is."""

    asked: Callable[[], Iterator[Asked]]
    data: str


def labelled(checkpoint: Checkpoint, verify_data: Sequence[Path] = (), shares: Sequence[Share] = ()) -> list[Labelled]:
    """What of `verify_data` is labelled and no part of the training data; else every part of that which is at hand and
    labelled (`shares`), painted scenes among them; else painted scenes of every domain."""
    apart = [folder for folder in verify_data if str(folder) not in [share.data for share in shares]]
    if asked := [own for folder in apart if (own := _pictures(checkpoint, folder))]:
        return asked
    folders = [Path(share.data) for share in shares if Path(share.data).is_dir()]
    found = [own for folder in folders if (own := _pictures(checkpoint, folder))]
    painted = painted_domains(shares)
    if painted or not found:
        found.append(_painted(checkpoint, painted or DOMAINS))
    return found


def _pictures(checkpoint: Checkpoint, folder: Path) -> Labelled | None:
    """The held-out pictures of a labelled folder; None where it has no labels."""
    if (folder / "prompts.txt").is_file():
        return None
    try:
        own = own_pictures(folder, OWN_PICTURES, PROMPTS)
    except InputError:  # data in another form, such as shards
        return None
    return Labelled(partial(_own, checkpoint, own), own.origin)


def _painted(checkpoint: Checkpoint, domains: tuple[str, ...]) -> Labelled:
    """Scenes, asked for all words of their domain. Of a large model one: it is too slow on a CPU for more."""
    count, domains = (1, domains[:1]) if isinstance(checkpoint, Offloaded) else (SCENES_PER_DOMAIN, domains)
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
    for example in own.examples:
        prompts, image = tuple(dict.fromkeys(example.prompts)), example.read()
        present = np.arange(len(prompts)) < example.labelled
        pixels = fit(image, working_size(checkpoint, image.shape), checkpoint.stride).pixels
        yield Asked(pixels, prompts, present[None])


def choose_threshold(
    checkpoint: Checkpoint, graphs: Graphs, sets: Sequence[Labelled], progress: Callable[[str], None]
) -> dict[str, Any]:  # fmt: skip
    """`presence` of the manifest. Raises VerificationError when a logit is not finite."""
    text_of = lru_cache(maxsize=8)(lambda prompts: _text(checkpoint, graphs, prompts))

    def answers(one: Labelled) -> Iterator[tuple[Array, NDArray[np.bool_]]]:
        for number, asked in enumerate(one.asked(), 1):
            progress(f"presence in picture {number} of {one.data}")
            (encoding,) = graphs.run(IMAGE_ENCODER, {"image": asked.image})
            (found,) = graphs.run(PRESENCE, {"encoding": encoding, **text_of(asked.prompts)})
            yield found.ravel(), asked.present.ravel()

    known = []
    for one in sets:
        logits, present = (np.concatenate(parts) for parts in zip(*answers(one)))
        known.append(Known(logits.astype(np.float64), present, one.data))
    return decide(known, checkpoint.config.presence_threshold)


def _text(checkpoint: Checkpoint, graphs: Graphs, prompts: tuple[str, ...]) -> dict[str, Array]:
    ids, mask = checkpoint.tokenizer.encode(prompts)
    keys, values = graphs.run(TEXT_ENCODER, {"token_ids": ids, "token_mask": mask})
    return {"text_keys": keys, "text_values": values, "token_mask": mask}


def in_words(stated: dict[str, Any]) -> str:
    """`presence` of a manifest as one line."""
    if stated["threshold"] is None:
        return f"no prompt is turned away: {stated['reason']}"
    pairs = stated["pairs"]
    kept = (
        f"threshold {stated['threshold']:g} keeps {stated['recall']:.1%} of {pairs['present']} prompts that are there"
    )
    if stated["turned_away"] is None:
        return kept
    return f"{kept}, turns away {stated['turned_away']:.1%} of {pairs['absent']} that are not"


@dataclass(frozen=True)
class Known:
    """Presence logits [N] of a set of pictures, and what is there [N]."""

    logits: NDArray[np.float64]
    present: NDArray[np.bool_]
    data: str

    @property
    def largest(self) -> float:
        """The largest threshold that keeps the recall here; infinite where nothing is there."""
        there = np.sort(self.logits[self.present])
        missed = len(there) - int(np.ceil(RECALL * len(there)))
        return float(there[missed]) if len(there) else np.inf

    def figures(self, threshold: float | None) -> dict[str, Any]:
        """What a threshold does here; None: it turns nothing away. A share of nothing is None."""
        kept = self.logits >= (-np.inf if threshold is None else threshold)
        present, mcc = (
            int(self.present.sum()),
            matthews(np.bincount(2 * self.present + kept, minlength=4).reshape(2, 2)),
        )
        absent = len(kept) - present
        return {"recall": float(kept[self.present].mean()) if present else None,
                "turned_away": float((~kept[~self.present]).mean()) if absent else None,
                "mcc": None if np.isnan(mcc) else mcc, "pairs": {"present": present, "absent": absent}}  # fmt: skip


def decide(sets: Sequence[Known], most: float | None = None) -> dict[str, Any]:
    """Threshold, what was asked of it, what it does on all pairs, and the same for every set.

    most: the checkpoint's own threshold. Pictures that it was chosen on may not be at hand, so no larger one is taken.
    """
    if not all(np.isfinite(one.logits).all() for one in sets):
        raise VerificationError("presence.onnx gives NaN or infinity on labelled pictures; expected finite numbers; nothing was "
                                "published; try --precision fp32")  # fmt: skip
    whole = Known(np.concatenate([one.logits for one in sets]), np.concatenate([one.present for one in sets]), "")
    count, threshold = int(whole.present.sum()), None
    if count >= ENOUGH:
        judged = [whole, *(one for one in sets if one.present.sum() >= ENOUGH)]
        threshold = float(np.floor(min(one.largest for one in judged) * GRID) / GRID)
        threshold = threshold if most is None else min(threshold, most)
    found = {"threshold": threshold, "wanted_recall": RECALL, **whole.figures(threshold),
             "sets": [{"data": one.data, **one.figures(threshold)} for one in sets]}  # fmt: skip
    if threshold is None:
        found["reason"] = (
            f"{count} pairs with something there, at least {ENOUGH} expected: too few for a recall, so no prompt is turned "
            "away; give labelled pictures with --verify-data FOLDER"
        )
    return found
