"""`quality.json` of a finished run: what the checkpoint's parts reach on held-out pictures of the run's own data.

A share of the run and no more: one picture for a hundred that were trained on, at most `quality_pictures`, each asked for two
of the things in it. On scenes test scenes are taken, of a folder what `digseg eval` would score. A student that was trained
alone is measured like any other: that its reference does not know the new pictures is what the file is to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from digseg_engine.console import Pace, note
from digseg_engine.data.batches import FolderOptions
from digseg_engine.data.shares import Data, scored_shares, short_names
from digseg_engine.errors import DigsegError
from digseg_engine.evaluation.protocols import Samples
from digseg_engine.evaluation.quality import Case, Rows, cases_of, means, measure
from digseg_engine.model.devices import device_of
from digseg_engine.model.pretrained import Checkpoint, as_stored
from digseg_engine.model.quality import FILE, MEASURE, Figures, write_quality
from digseg_engine.training.recipe_files import RecipeSettings
from digseg_engine.training.recipes.summary import scored_sets
from digseg_engine.training.run import move, stages_of
from digseg_engine.words import counted
from digseg_engine.worlds.scenes import is_scenes

TRAINED = 100  # pictures trained on for one that is measured: 2 masks cost about 60 passes of the U-Net, a hundred pictures 300
FEW = 8  # masks: of fewer it is said that they are few
EMPTY = 4  # times as many pictures are at hand: nothing asked for may be in some


def pictures_to_measure(config: RecipeSettings) -> int:
    """How many pictures a run is measured on; 0: none."""
    trained = sum(stage.steps * stage.batch * stage.accumulate for stage in stages_of(config).values())
    return min(config.quality_pictures, max(1, trained // TRAINED))


def measure_checkpoint(
    checkpoint: Checkpoint, folder: Path, data: Data, config: RecipeSettings, command: str
) -> Figures | None:
    """Measure the checkpoint that was just written to `folder`, on the run's device, and write its `quality.json`.

    In the first process alone; the others do not wait. The checkpoint is complete already: what goes wrong here is said, and
    is no failure of the run. None where nothing was measured.
    """
    count = pictures_to_measure(config)
    if not count or not PartialState().is_main_process:
        return None
    try:
        sets, kinds = _held_out(data, checkpoint.config.image_size, config, count)
        pace = Pace(f"measuring student, reference and refine of {folder} on pictures", count)
        sources = list[str]()  # the set of every mask
        found = measure(as_stored(move(checkpoint)), _noting(cases_of(sets, count), sources), pace)
        if not found:
            note("digseg", f"{FILE} is not written: nothing that is asked for is in the held-out pictures ({kinds})")
            return None
        masks = {"on": kinds, "pictures": pace.done, "pixels": checkpoint.config.image_size, "command": command,
                 "device": str(device_of(checkpoint.reference))}  # fmt: skip
        figures = means(found, {**masks, **by_set(found, sources)})
        write_quality(folder, figures)
    except (DigsegError, torch.OutOfMemoryError) as error:
        note(
            "digseg", f"{folder} is complete, but {FILE} is not in it: {error}; measure later: {MEASURE.format(folder)}"
        )
        return None
    print(said(figures), flush=True)
    return figures


def _noting(cases: Iterable[Case], sources: list[str]) -> Iterator[Case]:
    """The same cases; `sources` grows by the set's name for each of their masks."""
    for case in cases:
        sources += [case.source] * len(case.prompts)
        yield case


def by_set(rows: Rows, sources: Sequence[str]) -> dict[str, Any]:
    """{"sets": figures of each set} where the masks are of several: one figure of a mixture hides which of them is bad."""
    names = dict.fromkeys(sources)
    if len(names) < 2:
        return {}
    sets = {}
    for name in names:
        own = {part: [iou for iou, source in zip(ious, sources) if source == name] for part, ious in rows.items()}
        figures = means(own, {})
        sets[name] = {"masks": len(own["student"]), "student": figures.student, "reference": figures.reference,
                      "refine_student": figures.refine_student, "codec": figures.codec}  # fmt: skip
    return {"sets": sets}


def _held_out(data: Data, size: int, config: Any, count: int) -> tuple[list[Samples], str]:
    """The run's test sets and what their pictures are; scenes in their plain wording only."""
    sets, kinds = list[Samples](), []
    shares = scored_shares(data)
    for share, name in zip(shares, short_names(shares)):
        opened, kind = scored_sets(share.data, size, getattr(config, "folder", FolderOptions()), name, EMPTY * count)
        sets += [samples for samples in opened if not samples.name.endswith(", reworded")]
        kinds.append(kind if is_scenes(share.data) else f"{kind} of {name}")
    return sets, " and ".join(kinds)


def said(figures: Figures) -> str:
    """The figures in two lines, and whether `refine` will be offered."""

    def listed(by_steps: Any) -> str:
        return ", ".join(f"{value:.3f} in {steps}" for steps, value in sorted(by_steps.items()))

    about, helpful = figures.measured, figures.helpful
    offer = f"offered in {', '.join(map(str, helpful))} steps" if helpful else "refused, it does not help"
    sets = ", ".join(f"{name} {own['student']:.3f}" for name, own in about.get("sets", {}).items())
    each = f"\n  student by set: {sets}" if sets else ""
    few = ", too few to say much" if about["masks"] < FEW else ""
    return (f"quality, mean IoU of {counted(about['masks'], 'mask')} in {counted(about['pictures'], 'picture')} "
            f"({about['on']}{few}): student {figures.student:.3f}; reference {listed(figures.reference)} steps; codec "
            f"{figures.codec:.3f}\n"
            f"  refine: {listed(figures.refine_student)} steps from the student's masks, {offer}{each}")  # fmt: skip
