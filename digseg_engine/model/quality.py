"""`quality.json` of a checkpoint: what each of its parts was measured to reach, so that nothing harmful is offered.

All figures are mean IoU over the same masks: the student alone, the reference from noise (one step: from zeros) at
several step counts, refinement of the student's masks, refinement of the true masks (what the reference does to a mask
that needs nothing), and the codec (true masks through the autoencoder and back: the ceiling of all but the student).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.files import write_json

FILE, FORMAT = "quality.json", "digseg.quality/1"
MEASURE = "python benchmarks/refine.py --checkpoint {} --write"  # in a clone; --data for other data than scenes
WEIGHTS = ("vae", "unet", "text_encoder", "text_pathway", "student")


@dataclass(frozen=True)
class Figures:
    """Mean IoU in 0..1; by sampling steps where a part takes steps. `measured` says on what and by which command."""

    student: float
    reference: Mapping[int, float]
    refine_student: Mapping[int, float]
    refine_truth: Mapping[int, float]
    codec: float
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def helpful(self) -> list[int]:
        """The steps in which refinement was measured to gain over the student."""
        return [steps for steps, reached in sorted(self.refine_student.items()) if reached > self.student]

    def allow_refine(self, steps: int) -> None:
        """Raises UsageError with the figures where refinement was measured to gain nothing over the student."""
        reached = self.refine_student.get(steps, max(self.refine_student.values(), default=math.inf))
        if reached <= self.student:
            raise UsageError(
                f"refine does not help this checkpoint: mean IoU {reached:.3f} with it, {self.student:.3f} without "
                f"({FILE}, {self.measured.get('masks', 'some')} masks); leave it out (in Python force=True has it all the same)"
            )


def weights_hash(folder: Path) -> str:
    """One SHA-256 over the weight files of a checkpoint: figures belong to these weights and to no others."""
    digest = hashlib.sha256()
    for path in sorted(path for part in WEIGHTS for path in (folder / part).glob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_quality(folder: Path) -> Figures | None:
    """The figures of a checkpoint; None when it has none, or when they were measured with other weights.

    Raises CheckpointError for a file that cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("format") != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}")
        for name in ("reference", "refine_student", "refine_truth"):
            body[name] = {int(steps): _share(value) for steps, value in body[name].items()}
        found = Figures(**{**body, "student": _share(body["student"]), "codec": _share(body["codec"])})
        current = found.measured["weights"] == weights_hash(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error!r:.500}; delete it, or measure again: {MEASURE.format(folder)}"
        ) from error
    return found if current else None


def write_quality(folder: Path, figures: Figures) -> None:
    """Write the figures of a checkpoint; `measured` gets the hash of the weights they belong to."""
    measured = {**figures.measured, "weights": weights_hash(folder)}
    write_json(folder / FILE, {"format": FORMAT, **asdict(figures), "measured": measured})


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"a mean IoU must be a number in 0..1, got {value!r}")
    return float(value)
