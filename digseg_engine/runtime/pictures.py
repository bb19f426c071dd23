"""What `digseg segment` does: pictures of the command line through one engine, results to files, one line for each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from digseg_engine.console import complain
from digseg_engine.errors import InputError
from digseg_engine.names import stems
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.inputs import check_output, find_pictures
from digseg_engine.runtime.record import percent
from digseg_engine.text import check_prompts

DEFAULT_BUNDLE = "digseg-tiny-fp16"


def segment_pictures(
    photos: list[str], prompt: list[str], output: Path = Path("out"), bundle: Path | None = None, backend: str = "auto",
    checkpoint: Path | None = None, imgsz: int | None = None, tile: int | None = None, overlap: float = 0.25,
    refine: int = 0, steps: int = 4, seed: int = 0,
) -> int:  # fmt: skip
    """Segment every picture that can be used; exit code 2 when one could not. The arguments are those of the command."""
    prompts = check_prompts(prompt)
    paths = find_pictures(photos)
    check_output(output)
    model = bundle or os.environ.get("DIGSEG_BUNDLE", DEFAULT_BUNDLE)
    count = len(paths) if tile is None else None
    engine = Engine.load(model, backend, checkpoint, imgsz or tile, prompts=len(prompts), pictures=count)
    failed = 0
    for path, stem in zip(paths, stems(paths)):
        try:
            if tile is not None:
                tiled = engine.segment_tiles(path, prompts, output, stem, tile, overlap, imgsz)
                _say(path, prompts, tiled.areas, tiled.files[2], tiled.timings, tiled.fallbacks)
            else:
                result = engine.segment(path, prompts, imgsz, refine, steps, seed)
                written = result.save(output, stem)  # before it is said: the printed time includes it
                areas = [float(area) if found else 0.0 for area, found in zip(result.areas, result.found)]
                _say(path, prompts, areas, written[0], result.timings, result.fallbacks)
        except InputError as error:
            failed += 1
            complain("digseg", str(error))
            continue
    if failed and len(paths) > 1:
        complain("digseg", f"{failed} of {len(paths)} pictures could not be used; the others are in {output}")
    return 2 if failed else 0


def _say(
    path: Path, prompts: list[str], areas: Sequence[float], written: Path, timings: Mapping[str, float],
    notes: tuple[str, ...],
) -> None:  # fmt: skip
    found = ", ".join(f"{p} {percent(a)}" for p, a in zip(prompts, areas) if a > 0) or "nothing found"
    print(f"{path}: {found}  ->  {written}  ({sum(timings.values()):.2f} s){''.join(f'  [{note}]' for note in notes)}")
