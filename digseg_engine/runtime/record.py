"""What is said about a result in its JSON file: one schema for whole pictures and for tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from digseg_engine.runtime.backends import Array
from digseg_engine.runtime.labels import USUAL, Rules
from digseg_engine.runtime.source import Source

FORMAT = "digseg.result/1"
NAMED = 4  # prompts that the summary of a result names


@dataclass(frozen=True)
class About:
    """What made a result: the model's folder and hash, what ran it, the working size in pixels, the rules, notes on what
    had to be done otherwise than planned, the contrast prompts, and whether prompts that are not there were decoded too."""

    model: str
    digest: str
    backend: str
    size: int
    rules: Rules = USUAL
    notes: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    all_prompts: bool = False

    @classmethod
    def of(
        cls, source: Source, backend: str, size: int, rules: Rules, notes: tuple[str, ...], against: tuple[str, ...] = (),
        all_prompts: bool = False,
    ) -> About:  # fmt: skip
        folder = source.need_checkpoint("a result") if source.bundle is None else source.bundle.folder
        digest = source.digest if source.bundle is None else source.bundle.digest
        return cls(folder.name, digest, backend, size, rules, notes, against, all_prompts)


@dataclass(frozen=True)
class Answer:
    """About one prompt: share of the picture, pixels, mean probability inside, box (None when empty), whether it counts as
    found; probability to be in the picture at all (None for a model that does not say), and whether that was enough."""

    prompt: str
    area: float
    pixels: int
    score: float
    box: list[int] | None
    found: bool
    presence: float | None = None
    there: bool = True


def listed_presence(
    presence: Array | None, there: Array | None, prompts: int
) -> tuple[list[float | None], list[bool]]:  # fmt: skip
    """Presence and "is there" of K prompts as an `Answer` has them."""
    sure: list[float | None] = [None] * prompts if presence is None else [float(value) for value in presence]
    return sure, [True] * prompts if there is None else [bool(value) for value in there]


def record(
    shape: tuple[int, int], answers: Sequence[Answer], about: About, seconds: Mapping[str, float],
    picture: str | None = None, refined: Sequence[int] = (), tiles: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Plain JSON values; `label` is the value of the label map that stands for a prompt. `files` is added by whoever writes
    some."""
    from digseg_engine import __version__

    masks = [
        {"prompt": answer.prompt, "label": k + 1, "found": answer.found, "area": round(answer.area, 6), "pixels": answer.pixels,
         "score": known(answer.score), "box": answer.box, "there": answer.there,
         "presence": None if answer.presence is None else round(answer.presence, 4)}
        for k, answer in enumerate(answers)
    ]  # fmt: skip
    return {
        "format": FORMAT, "version": __version__, "picture": picture, "width": shape[1], "height": shape[0],
        "model": {"name": about.model, "sha256": about.digest}, "backend": about.backend, "working_size": about.size,
        "threshold": about.rules.threshold, "label_rule": about.rules.labels, "against": list(about.against),
        "all_prompts": about.all_prompts,
        "tiles": None if tiles is None else dict(tiles), "seconds": {k: round(v, 5) for k, v in seconds.items()},
        "notes": list(about.notes), "refined": [answers[k].prompt for k in refined], "masks": masks,
    }  # fmt: skip


def summary(
    kind: str, shape: tuple[int, int], answers: Sequence[Answer], about: About, seconds: Mapping[str, float]
) -> str:  # fmt: skip
    """A result in one line, for `print` and the interactive prompt."""
    words = [f"{answer.prompt!r} {percent(answer.area) if answer.pixels else 'none'}" for answer in answers[:NAMED]]
    words += [f"and {len(answers) - NAMED} more"] if len(answers) > NAMED else []
    took = f"{sum(seconds.values()):.2f} s"
    return f"{kind}({shape[1]}x{shape[0]}: {', '.join(words)}; {about.model}, {about.backend}, {took})"


def known(score: float) -> float | None:
    """A score as JSON has it: None where the bundle gives none."""
    return None if score != score else round(score, 4)


def percent(area: float) -> str:
    """A share in words that never says "0.0 %" of something: "12.3 %", "0.02 %", "under 0.01 %"."""
    if area >= 0.001 or area == 0:
        return f"{100 * area:.1f} %"
    return f"{100 * area:.2f} %" if area >= 0.0001 else "under 0.01 %"


def missing(answer: Answer) -> str:
    """Why a prompt has no mask: "not there", where the model says so with its probability, or "not found"."""
    return "not found" if answer.there else f"not there ({100 * (answer.presence or 0.0):.0f} %)"
