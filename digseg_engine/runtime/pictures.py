"""What `digseg segment` does: pictures of the command line through one engine, results to files, one line for each.

A picture that fails is reported by name and the others are done; the exit code says so at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from digseg_engine.bundle import MANIFEST, read_manifest
from digseg_engine.console import complain, note, telling
from digseg_engine.errors import BundleError, CheckpointError, UsageError
from digseg_engine.faults import described
from digseg_engine.images import read_picture
from digseg_engine.named import DEFAULT_BUNDLE, brought, default_bundle, find_model
from digseg_engine.names import stems
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.inputs import FarPicture, check_output, find_pictures, read_prompts, several_in_one
from digseg_engine.runtime.pipeline import contrasts
from digseg_engine.runtime.record import percent
from digseg_engine.runtime.result import SAVED, Segmentation
from digseg_engine.runtime.saving import is_ours, listed, name_files
from digseg_engine.runtime.strips import NAMES, TILED
from digseg_engine.runtime.tiles import TiledSegmentation, check_rule
from digseg_engine.text import check_prompts
from digseg_engine.vocabulary import RULE, Vocabulary, check_folded, vocabulary_of
from digseg_engine.words import counted

Place = Path | FarPicture  # of a picture
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
    ray: str | None = None  # "local" or the address of a cluster
    actors: int | None = None
    actor_cpus: float = 1.0
    actor_gpus: float | None = None

    @property
    def rule(self) -> str:
        """Of the label map."""
        return self.labels or ("parts" if self.tile is None else "strongest")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the files to write."""
        return (SAVED if self.tile is None else (*TILED, "json")) if self.only is None else self.only


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: the line about it, the hint for a squeezed one (given once for all) and the files written;
    or an exit code and what went wrong."""

    path: str
    line: str = ""
    hint: str = ""
    files: tuple[Path, ...] = ()
    code: int = 0
    message: str = ""


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
    if work.tile is not None and (far := [place for place in found.paths if isinstance(place, FarPicture)]):
        raise UsageError(f"--tile reads pictures piece by piece from this machine's disks, got {far[0]}; copy it first")
    if work.tile is not None:
        check_rule(work.rule)
    todo = list(zip(found.paths, stems(found.paths)))
    notes = list(found.notes)
    if work.skip_existing:
        count = len(todo)
        todo = [(path, stem) for path, stem in todo if not is_done(work, stem, prompts)]
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


def _all(work: Work, prompts: list[str], todo: list[tuple[Place, str]]) -> int:
    failed: list[Outcome] = []
    hints: list[str] = []
    with _workers(work, prompts, len(todo)) as outcomes, _progress(len(todo), work.quiet) as advance:
        for outcome in outcomes(todo):
            if outcome.code:
                failed.append(outcome)
                complain("digseg", outcome.message)
            elif outcome.line:
                print(outcome.line, flush=True)
            hints += [outcome.hint] if outcome.hint else []
            advance()
    if hints and not work.quiet:
        count = f"{len(hints)} of {counted(len(todo), 'picture')}: " if len(todo) > 1 else ""
        note("digseg", f"{count}{hints[0]}")
    if failed and len(todo) > 1:
        others = f"; the others are in {work.output}" if len(failed) < len(todo) else ""
        complain("digseg", f"{len(failed)} of {len(todo)} pictures could not be done{others}")
    return 0 if not failed else 1 if any(each.code == 1 for each in failed) else 2


Todo = Iterable[tuple[Place, str]]  # pictures and the stems of their files


@contextmanager
def _workers(work: Work, prompts: list[str], pictures: int) -> Iterator[Callable[[Todo], Iterator[Outcome]]]:
    """What makes outcomes of pictures: one engine in this process, or those of a cluster."""
    if work.ray is not None:
        from digseg_engine.runtime.cluster import workers

        with workers(work, prompts, pictures) as outcomes:
            yield outcomes
        return
    engine = open_engine(work, prompts, pictures)
    say_engine(work, engine.backend.name, engine.backend.detail, engine.fallbacks)
    yield lambda todo: (outcome(engine, work, prompts, path, stem) for path, stem in todo)


def outcome(engine: Engine, work: Work, prompts: list[str], path: Place, stem: str) -> Outcome:
    """Segment and save one picture. Raises UsageError, BundleError and CheckpointError, the same for every picture; everything
    else that goes wrong is this picture's."""
    try:
        return _one(engine, work, prompts, path, stem)
    except (UsageError, BundleError, CheckpointError):
        raise
    except Exception as error:
        return failure(path, error)


def failure(path: Place, error: Exception) -> Outcome:
    code, message = described(error)
    return Outcome(str(path), code=code, message=message if str(path) in message else f"{path}: {message}")


def open_engine(work: Work, prompts: list[str], pictures: int) -> Engine:
    model, why = (work.bundle, "named by --bundle") if work.bundle else default_bundle()
    if work.verbose:
        note("digseg", f"bundle {model} ({why}); {counted(pictures, 'picture')}, {counted(len(prompts), 'prompt')}")
    with telling(work.quiet):
        trained = None if work.checkpoint is None else find_model(work.checkpoint, on_hub=False)
        return Engine.load(model, work.backend, trained, work.imgsz or work.tile, prompts=len(prompts),
                           pictures=None if work.tile else pictures, threads=work.threads, device=work.device,
                           engines=work.engines)  # fmt: skip


def say_engine(work: Work, backend: str, detail: str, remarks: Iterable[str]) -> None:
    """What there is to say about an engine, the same for every picture."""
    if work.verbose:
        note("digseg", f"backend {backend}: {detail}")
    for remark in () if work.quiet else remarks:
        note("digseg", remark)


def _one(engine: Engine, work: Work, prompts: list[str], path: Place, stem: str) -> Outcome:
    if work.tile is not None:
        tiled = engine.segment_tiles(path, prompts, work.output, stem, work.tile, work.overlap, work.imgsz,
                                     threshold=work.threshold, labels=work.rule, only=work.only,
                                     against=work.against, all_prompts=work.all_prompts)  # fmt: skip
        return _told(work, path, stem, tiled, list(tiled.files), engine.fallbacks)
    image = read_picture(path) if isinstance(path, FarPicture) else path
    result = engine.segment(image, prompts, work.imgsz, work.refine, work.steps, work.seed, work.threshold, work.rule,
                            against=work.against, all_prompts=work.all_prompts)  # fmt: skip
    files = result.save(work.output, stem, work.kinds)
    return replace(_told(work, path, stem, result, files, (*engine.fallbacks, result.hint)), hint=result.hint)


def _told(
    work: Work, path: Place, stem: str, result: Segmentation | TiledSegmentation, files: list[Path],
    said: tuple[str, ...],
) -> Outcome:  # fmt: skip
    """The outcome with its line; `said`: remarks that are made once for all pictures."""
    line = ""
    if work.as_json:
        body = {**_recorded(work, stem, result, files), "saved": [str(file) for file in files]}
        line = json.dumps(body, ensure_ascii=False)
    elif not work.quiet:
        words = [f"{each.prompt} {percent(each.area)}" for each in result.answers if each.area > 0]
        empty = [each for each in result.answers if not each.area > 0]
        absent = _listed("not found", [each.prompt for each in empty if each.there])
        absent += _listed("not there", [each.prompt for each in empty if not each.there])
        answer = f"{', '.join(words)}{absent}" if words else "nothing found"
        remarks = "".join(f"  [{remark}]" for remark in result.fallbacks if remark not in said)
        seconds = sum(result.timings.values())
        line = f"{path}: {answer}  ->  {files[0]}  ({seconds:.2f} s){remarks}"
    return Outcome(str(path), line, files=tuple(files))


def told_again(work: Work, path: Place, record: Path) -> Outcome:
    """The outcome of a picture whose results are there, from its record."""
    files = (*(record.with_name(name) for name in sorted(listed(record))), record)
    line = ""
    if work.as_json:
        body = {**json.loads(record.read_text(encoding="utf-8")), "saved": [str(file) for file in files]}
        line = json.dumps(body, ensure_ascii=False)
    elif not work.quiet:
        line = f"{path}: done  ->  {files[0]}"
    return Outcome(str(path), line, files=files)


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


def is_done(work: Work, stem: str, prompts: list[str]) -> bool:
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
