"""What `digseg segment` does: pictures of the command line through one engine, results to files, one line for each.

A picture that fails is reported by name and the others are done; the exit code says so at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from digseg_engine.bundle import MANIFEST, read_manifest
from digseg_engine.console import complain, note, telling
from digseg_engine.errors import BundleError, CheckpointError, UsageError
from digseg_engine.faults import described
from digseg_engine.named import DEFAULT_BUNDLE, brought, default_bundle, find_model
from digseg_engine.names import stems
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.inputs import check_output, find_pictures, read_prompts, several_in_one
from digseg_engine.runtime.pipeline import contrasts
from digseg_engine.runtime.record import percent
from digseg_engine.runtime.result import SAVED, Segmentation
from digseg_engine.runtime.saving import is_ours, name_files
from digseg_engine.runtime.strips import NAMES, TILED
from digseg_engine.runtime.tiles import TiledSegmentation, check_rule
from digseg_engine.text import check_prompts
from digseg_engine.vocabulary import RULE, Vocabulary, check_folded, vocabulary_of
from digseg_engine.words import counted

NAMED = 5  # prompts without a mask that a line names; the JSON has them all


@dataclass(frozen=True)
class Work:
    """What is asked for; the fields are the options of the command."""

    photos: list[str]
    prompt: list[str] = field(default_factory=list)
    prompts_file: Path | None = None
    output: Path = Path("out")
    bundle: Path | None = None
    backend: str = "auto"
    checkpoint: Path | None = None
    device: str | None = None
    threads: int | None = None
    engines: Path | None = None
    imgsz: int | None = None
    tile: int | None = None
    overlap: float = 0.25
    refine: int = 0
    steps: int = 4
    seed: int = 0
    threshold: float = 0.5
    all_prompts: bool = False
    against: list[str] = field(default_factory=list)
    labels: str | None = None  # None: parts, in tiles strongest
    only: tuple[str, ...] | None = None  # None: all, in tiles all but masks
    recursive: bool = False
    skip_existing: bool = False
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def rule(self) -> str:
        """Of the label map."""
        return self.labels or ("parts" if self.tile is None else "strongest")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the files to write."""
        return (SAVED if self.tile is None else (*TILED, "json")) if self.only is None else self.only


def segment_pictures(work: Work) -> int:
    """Exit code: 0 when all was done, 2 when pictures could not be used, 1 when results could not be written or the like."""
    with telling(work.quiet):
        work = replace(work, bundle=brought(work.bundle))
    names = folded_names(work)
    prompts = read_prompts(work.prompt, work.prompts_file)
    if names is not None:
        check_folded(names, work.against, work.all_prompts, work.labels, work.refine)
        work, prompts = replace(work, labels=RULE), prompts or list(names.names)
        names.numbers(prompts)
    prompts = check_prompts(prompts)
    contrasts(prompts, work.against)
    found = find_pictures(work.photos, work.recursive)
    check_output(work.output)
    check_refine(work)
    if work.tile is not None:
        check_rule(work.rule)
    todo = list(zip(found.paths, stems(found.paths)))
    notes = list(found.notes)
    if work.skip_existing:
        count = len(todo)
        todo = [(path, stem) for path, stem in todo if not _done(work, stem, prompts)]
        notes += (
            [f"{counted(count - len(todo), 'picture')} skipped: the results are there"] if len(todo) < count else []
        )
    loose = prompts if names is None else []
    notes += [f"{prompt!r} is asked as one prompt; for several, repeat -p" for prompt in several_in_one(loose)]
    for text in [] if work.quiet else notes:
        note("digseg", text)
    return _all(work, prompts, todo) if todo else 0


def folded_names(work: Work) -> Vocabulary | None:
    """The names of the bundle that is asked for, where it is a folded one. What is wrong with it is said when it is opened."""
    model = find_model(work.bundle)
    try:
        return vocabulary_of(read_manifest(model), model) if (model / MANIFEST).is_file() else None
    except BundleError:
        return None


def check_refine(work: Work) -> None:
    """Raises UsageError where the reference is asked for and only a bundle, which has none, is named."""
    model = work.bundle or default_bundle()[0]
    if not work.refine or work.checkpoint is not None or not (model / MANIFEST).is_file():
        return
    what = "add --checkpoint FOLDER, or name it with -b instead of the bundle"
    if model.name == DEFAULT_BUNDLE:
        what = "for the bundled model leave --refine out: its reference makes masks worse (docs/evaluation.md)"
    raise UsageError(f"--refine asks the reference, which is in the checkpoint that {model} was exported from; {what}")


def _all(work: Work, prompts: list[str], todo: list[tuple[Path, str]]) -> int:
    engine = _engine(work, prompts, len(todo))
    codes: list[int] = []
    hints: list[str] = []
    with _progress(len(todo), work.quiet) as advance:
        for path, stem in todo:
            try:
                hint = _one(engine, work, prompts, path, stem)
                hints += [hint] if hint else []
            except (UsageError, BundleError, CheckpointError):
                raise  # the same for every picture
            except Exception as error:
                code, message = described(error)
                codes.append(code)
                complain("digseg", message if str(path) in message else f"{path}: {message}")
            advance()
    if hints and not work.quiet:
        count = f"{len(hints)} of {counted(len(todo), 'picture')}: " if len(todo) > 1 else ""
        note("digseg", f"{count}{hints[0]}")
    if codes and len(todo) > 1:
        others = f"; the others are in {work.output}" if len(codes) < len(todo) else ""
        complain("digseg", f"{len(codes)} of {len(todo)} pictures could not be done{others}")
    return 0 if not codes else 1 if 1 in codes else 2


def _engine(work: Work, prompts: list[str], pictures: int) -> Engine:
    model, why = (work.bundle, "named by --bundle") if work.bundle else default_bundle()
    if work.verbose:
        note("digseg", f"bundle {model} ({why}); {counted(pictures, 'picture')}, {counted(len(prompts), 'prompt')}")
    with telling(work.quiet):
        trained = None if work.checkpoint is None else find_model(work.checkpoint, on_hub=False)
        engine = Engine.load(model, work.backend, trained, work.imgsz or work.tile, prompts=len(prompts),
                             pictures=None if work.tile else pictures, threads=work.threads, device=work.device,
                             engines=work.engines)  # fmt: skip
    if work.verbose:
        note("digseg", f"backend {engine.backend.name}: {engine.backend.detail}")
    for remark in () if work.quiet else engine.fallbacks:  # the same for every picture
        note("digseg", remark)
    return engine


def _one(engine: Engine, work: Work, prompts: list[str], path: Path, stem: str) -> str:
    """Segment, save and report one picture; returns the hint for a squeezed one, which is given once for all."""
    if work.tile is not None:
        tiled = engine.segment_tiles(path, prompts, work.output, stem, work.tile, work.overlap, work.imgsz,
                                     threshold=work.threshold, labels=work.rule, only=work.only,
                                     against=work.against, all_prompts=work.all_prompts)  # fmt: skip
        _report(work, path, stem, tiled, list(tiled.files), engine.fallbacks)
        return ""
    result = engine.segment(path, prompts, work.imgsz, work.refine, work.steps, work.seed, work.threshold, work.rule,
                            against=work.against, all_prompts=work.all_prompts)  # fmt: skip
    _report(work, path, stem, result, result.save(work.output, stem, work.kinds), (*engine.fallbacks, result.hint))
    return result.hint


def _report(
    work: Work, path: Path, stem: str, result: Segmentation | TiledSegmentation, files: list[Path],
    said: tuple[str, ...],
) -> None:  # fmt: skip
    """One line about a picture; `said`: remarks that are made once for all of them."""
    if work.as_json:
        body = {**_recorded(work, stem, result, files), "saved": [str(file) for file in files]}
        print(json.dumps(body, ensure_ascii=False), flush=True)
    elif not work.quiet:
        words = [f"{each.prompt} {percent(each.area)}" for each in result.answers if each.area > 0]
        empty = [each for each in result.answers if not each.area > 0]
        absent = _listed("not found", [each.prompt for each in empty if each.there])
        absent += _listed("not there", [each.prompt for each in empty if not each.there])
        answer = f"{', '.join(words)}{absent}" if words else "nothing found"
        remarks = "".join(f"  [{remark}]" for remark in result.fallbacks if remark not in said)
        seconds = sum(result.timings.values())
        print(f"{path}: {answer}  ->  {files[0]}  ({seconds:.2f} s){remarks}", flush=True)


def _listed(what: str, prompts: list[str]) -> str:
    if not prompts:
        return ""
    return f"; {what}: {', '.join(prompts[:NAMED])}{', ...' if len(prompts) > NAMED else ''}"


def _recorded(
    work: Work, stem: str, result: Segmentation | TiledSegmentation, files: list[Path]
) -> dict[str, Any]:  # fmt: skip
    """The record as it was written, or would have been: with the names of the files."""
    record = work.output / f"{stem}.json"
    if record in files or isinstance(result, TiledSegmentation):
        return dict(json.loads(record.read_text(encoding="utf-8")))
    return name_files(result.as_dict(), *result.places(work.output, stem, work.kinds))


def _done(work: Work, stem: str, prompts: list[str]) -> bool:
    """Whether a result of ours is there for the same prompts and rules, with every file that is wanted now."""
    record = work.output / f"{stem}.json"
    if not (record.is_file() and is_ours(record)):
        return False
    body = json.loads(record.read_text(encoding="utf-8"))
    masks = body.get("masks", [])
    if [mask.get("prompt") for mask in masks] != prompts or body.get("threshold") != work.threshold:
        return False
    if body.get("against", []) != contrasts(prompts, work.against) or body.get("all_prompts") != work.all_prompts:
        return False
    if work.imgsz is not None and body.get("working_size") != work.imgsz:
        return False
    if body.get("label_rule") != work.rule or (body.get("tiles") is None) != (work.tile is None):
        return False
    names = {"labels": "labels", "overlay": "overlay"} if work.tile is None else NAMES
    files = [body.get("files", {}).get(name) for kind, name in names.items() if kind in work.kinds]
    files += [mask.get("file") for mask in masks] if "masks" in work.kinds and work.tile is None else []
    return all(name and (work.output / name).is_file() for name in files)


@contextmanager
def _progress(count: int, quiet: bool) -> Iterator[Callable[[], Any]]:
    """A bar on a terminal when there are several pictures; what it yields is called after each."""
    if count < 2 or quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("segmenting", total=count)
        yield lambda: bar.advance(task)
