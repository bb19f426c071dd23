"""`digseg eval`: score a model."""

from __future__ import annotations

import json
from pathlib import Path

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.train import check_data
from digseg_engine.console import note, telling
from digseg_engine.errors import DigsegError, UsageError
from digseg_engine.evaluation.presets import protocol_names
from digseg_engine.evaluation.views import Views
from digseg_engine.folders import check_output_file
from digseg_engine.named import find_model

PROTOCOLS = protocol_names()


def run(
    model: Path | None, data: str, layout: str | None, split: str | None, count: int | None, seed: int, size: int | None,
    reference_steps: tuple[int, ...], slide: bool, short_side: int | None, scales: tuple[float, ...], flip: bool,
    protocol: str | None, wordings: bool, report: Path | None, device: str | None,
    backend: str | None,
) -> None:  # fmt: skip
    check_data(data)
    if protocol is not None and not Path(data).is_dir():
        raise UsageError(f"--protocol {protocol} scores a folder of labelled pictures; add --data FOLDER")
    with telling():
        model = None if model is None else find_model(model)
    if model is not None and not model.is_dir():
        raise UsageError(f"--model {model} is not a folder; expected a checkpoint or a bundle")
    if report is not None:
        check_output_file(report)
    if data.startswith("scenes") and model is not None and (taught := taught_by(model)):
        note("digseg", f"note: {model} was trained on {', '.join(taught)}, and painted scenes say little about it; add --data "
                       f"{taught[0]}")  # fmt: skip
    views = Views(scales, flip, slide, short_side=short_side)
    from digseg_engine.evaluation.presets import read_protocol
    from digseg_engine.evaluation.protocols import EVERY
    from digseg_engine.evaluation.score import Request, score_model

    preset = None if protocol is None else read_protocol(protocol)
    if count is None:
        count = 100 if preset is None else EVERY
    asked = Request(
        model, data, count, size, reference_steps, layout, split, device, seed, views, preset, wordings, backend
    )
    score_model(asked, report)


def taught_by(model: Path) -> list[str]:
    """The data that a checkpoint's record says it was trained on, where painted scenes are not among them."""
    from digseg_engine.data.shares import parse_shares
    from digseg_engine.worlds.scenes import is_scenes

    try:
        shares = parse_shares(json.loads((model / "training" / "train.json").read_text(encoding="utf-8"))["data"])
    except (DigsegError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [] if any(is_scenes(share.data) for share in shares) else [share.data for share in shares]


def counted(text: str) -> int:
    """A number of pictures, or "all"."""
    number = 0 if text == "all" else int(text)
    if number < (text != "all"):
        raise ValueError(text)
    return number


def steps_listed(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 with commas between them, each once."""
    found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    if min(found) < 1:
        raise ValueError(text)
    return found


def scaled(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    return tuple(float(part) for part in text.split(","))


COMMAND = Command(
    name="eval",
    summary="Score a model on the fixed test scenes or on labelled pictures: IoU, Dice, boundary IoU, false alarms.",
    run=run,
    extras=("train",),
    options=(
        Option("--model --bundle -b", "checkpoint or bundle", kind=Path, metavar="FOLDER",
               shown="the bundled checkpoint, digseg-tiny"),
        Option("--data", "scenes, scenes:DOMAIN,... or labelled pictures, a folder or shards", default="scenes", metavar="DATA"),
        Option("--layout", "layout of the folder", shown="recognised", metavar="NAME"),
        Option("--split", "split of the folder", shown="its validation split", metavar="NAME"),
        Option("--count", "test scenes per domain; of a folder, at most so many pictures at random, or all", kind=counted,
               metavar="N", shown="100; of a protocol, all", expects="a whole number of at least 1, or all"),
        Option("--seed", "which pictures of a folder are chosen", kind=int, default=0, at_least=0),
        Option("--size --imgsz", "working size in pixels", kind=int, shown="the picture's, within the model's range"),
        Option("--protocol", "score as a well-known benchmark does: " + ", ".join(PROTOCOLS), choices=PROTOCOLS,
               metavar="NAME", not_with=("--slide", "--short-side")),
        Option("--slide", "windows of the working size over the picture, overlapping by a third, instead of reducing it",
               kind=bool, default=False),
        Option("--short-side", "bring the picture's shorter side to so many pixels first", kind=int, at_least=16,
               shown="its longer side to the working size; with --slide as it is"),
        Option("--scales", "work at several sizes and average, as 0.75,1,1.25", kind=scaled, default=(1.0,), shown="1",
               metavar="X,...", expects="numbers such as 0.75,1,1.25"),
        Option("--flip", "average with the mirrored picture", kind=bool, default=False),
        Option("--wordings", "ask again as people write: a photo of a X, segment the X, \"X\", plural", kind=bool,
               default=False, not_with=("--protocol",)),
        Option("--reference-steps", "score the reference with so many steps instead of the student; several, as 1,2,4,8, in "
               "one table and report", kind=steps_listed, default=(), shown="the student", metavar="N,...",
               expects="whole numbers of at least 1 such as 1,2,4,8"),
        Option("--backend", "of a bundle: a name that `digseg doctor` lists", shown="measured, as in `digseg segment`",
               metavar="NAME"),
        Option("--device", "cpu, cuda or cuda:1", shown="cpu; of a bundle, its backend's", metavar="NAME"),
        Option("--report", "write all figures to this .json, with .csv and .png", kind=Path, metavar="FILE"),
    ),
    examples=("digseg eval --count 20", "digseg eval --model runs/mine/checkpoint --data mydata --report scores.json",
              "digseg eval --model runs/mine/checkpoint --data mydata --reference-steps 1,2,4,8 --report steps.json",
              "digseg eval --model runs/ade/checkpoint --data ADEChallengeData2016 --protocol ade20k --device cuda"),
)  # fmt: skip
