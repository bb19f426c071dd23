"""Which backend runs: every usable one is created, verified against the golden sample and timed; the fastest right one wins.

A backend that fails in whatever way is a row of the table with its reason, and another one runs. The verdict is kept per
(weights, device, driver, library and backend versions, shape) in the user's cache folder, so that only the first start on
a machine measures. A backend asked for by name is verified too, once, and is never replaced by another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from digseg_engine.contract import LABEL_MAP, LOGITS, PRESENCE_LOGITS
from digseg_engine.errors import BackendError
from digseg_engine.precisions import PLAIN
from digseg_engine.runtime import verdicts
from digseg_engine.runtime.backends import Array, Backend, BackendKind, Usable, failing_as, in_one_line, kinds
from digseg_engine.runtime.chunks import ChunkedRunner, joined
from digseg_engine.runtime.machine import device_key, library_versions
from digseg_engine.runtime.presence import Asker, Gate
from digseg_engine.runtime.prompts import to_length
from digseg_engine.runtime.source import Golden, Source
from digseg_engine.runtime.timing import repeated
from digseg_engine.words import counted

FOLDED = (LABEL_MAP.name, LOGITS.name, PRESENCE_LOGITS.name)  # what is asked of a folded bundle, as far as it has it
WARM_UP, RUNS, SECONDS = 2, 7, 3.0
ASKS_PROMPTS = "asks a checkpoint prompts, and this bundle's names are folded into its graph"
LEFT_OUT = "not tried for so little work: it compiles for longer than that takes"
_log = logging.getLogger("digseg_engine")
PROMPT_STEPS = (1, 4, 20, 64, 256)


@dataclass(frozen=True)
class Task:
    """The shape backends are timed at: pictures of size x size pixels, batch of them, prompts about each."""

    size: int
    batch: int = 1
    prompts: int = 1

    @property
    def rounded(self) -> Task:
        """Prompts rounded up to a few steps, so that 3 and 4 prompts share one verdict."""
        return replace(self, prompts=next((s for s in PROMPT_STEPS if self.prompts <= s), self.prompts))


@dataclass(frozen=True)
class Row:
    """One backend of the table. error: relative L2 error on the golden sample; iou: mean mask IoU; ms: median."""

    backend: str
    usable: bool
    detail: str = ""
    reason: str = ""
    install: str = ""
    error: float | None = None
    iou: float | None = None
    ms: float | None = None
    right: bool = False
    chosen: bool = False

    @property
    def why(self) -> str:
        """Why it cannot run or is wrong, and what helps, each said once."""
        return self.reason if not self.install or self.install in self.reason else f"{self.reason}; {self.install}"


@dataclass(frozen=True)
class Verdict:
    """The table, and which backend won. `cached` tells whether it was measured now or read."""

    task: Task
    rows: tuple[Row, ...]
    cached: bool = False

    @property
    def chosen(self) -> Row:
        """Raises BackendError when no backend was right."""
        for row in self.rows:
            if row.chosen:
                return row
        first, *others = sorted(self.rows, key=lambda row: not row.usable)  # one that ran, and wrongly, says most
        more = f" says why {counted(len(others), 'other')} cannot" if others else " shows all that is known"
        said = f"no backend can run here and is right ({first.backend}: {first.why})"
        raise BackendError(f"{said}; `digseg doctor --bundle FOLDER`{more}")


def choose(source: Source, task: Task) -> tuple[Verdict, Backend]:
    """The verdict for a task, read when it is known and measured when not, and the chosen backend, created.

    Raises BackendError when nothing usable is right.
    """
    task = task.rounded
    known = _known(source, task)
    if known is not None:
        try:
            return known, create(kinds()[known.chosen.backend], source)
        except Exception:
            pass  # what worked before does not any more: measure again
    with verdicts.turn(verdict_key(source, task)):
        measured = _known(source, task) if known is None else None  # by another process, while this one waited
        verdict = measured or measure(source, task, time_the_only_one=False)
    while True:
        winner = verdict.chosen
        try:
            return verdict, create(kinds()[winner.backend], source)
        except Exception as failure:  # it worked a moment ago: the next one then
            lost = replace(winner, usable=False, right=False, reason=in_one_line(failure))
            verdict = replace(verdict, rows=tuple(_crown([lost if row is winner else row for row in verdict.rows])))


def _known(source: Source, task: Task) -> Verdict | None:
    known = _read(verdict_key(replace(source, brief=False), task), task)
    if source.brief:  # what starts slowly is left out, whether it was measured before or not
        return (known and _without_slow_starters(known)) or _read(verdict_key(source, task), task)
    return known


def create(kind: BackendKind, source: Source) -> Backend:
    """The backend. Raises BackendError, or another of our errors, whatever went wrong."""
    if source.vocabulary is not None and kind.needs == "checkpoint":
        raise BackendError(
            f"backend {kind.name} {ASKS_PROMPTS}; load the checkpoint itself, or choose another --backend"
        )
    try:
        with failing_as(kind.name, "to start"):
            backend = kind.create(source)
        if source.vocabulary is not None and not hasattr(backend, "labels"):
            raise BackendError(
                f"backend {kind.name} does not run folded bundles (it has no `labels`); choose another --backend"
            )
        return backend
    except MemoryError as error:
        raise BackendError(f"backend {kind.name} failed to start: out of memory; use a smaller model") from error


def named(kind: BackendKind, source: Source) -> Backend:
    """A backend asked for by name, created and, unless that is remembered of it, verified.

    Raises BackendError when it cannot run here or answers the golden sample wrongly.
    """
    backend = create(kind, source)
    key = _key(source, {"named": kind.name, "identity": kind.identity, "brief": source.brief})
    if (verdicts.read(key) or {}).get("right") is True:
        return backend
    error, iou = check_golden(backend, source.golden)
    right, reason = within_limits(error, iou, source.golden.allowing(getattr(backend, "precision", PLAIN.name)))
    if not right:
        raise BackendError(
            f"backend {kind.name} cannot be used here ({backend.detail}): {reason}; try another --backend"
        )
    verdicts.write(key, {"right": True, "error": error, "iou": iou})
    return backend


def measure(source: Source, task: Task, time_the_only_one: bool = True) -> Verdict:
    """Create, verify and time every backend, one after the other; the verdict is remembered when one of them is right.

    time_the_only_one=False leaves out the timing where there is nothing to choose from.
    """
    task, original, source = task.rounded, source, replace(source, brief=False)
    _ = source.golden  # what is wrong with the model itself is no backend's fault, and said as it is
    looks = {
        kind.name: Usable(kind.name, False, "", LEFT_OUT) if original.brief and kind.slow_start else look(kind, source)
        for kind in kinds().values()
    }
    usable = [name for name, result in looks.items() if result.usable]
    timed = time_the_only_one or len(usable) > 1
    rows = []
    for kind in kinds().values():
        if kind.name in usable and len(usable) > 1:
            _log.info("choosing a backend, %d of %d: %s%s; the choice is remembered", usable.index(kind.name) + 1, len(usable),
                      kind.name, ", which compiles first" if kind.slow_start else "")  # fmt: skip
        rows.append(assess(kind, looks[kind.name], source, task, timed))
    verdict = Verdict(task, tuple(_crown(rows)))
    if any(row.chosen for row in verdict.rows):
        verdicts.write(
            verdict_key(original, task), {"rows": [asdict(row) for row in verdict.rows], "task": asdict(task)}
        )
    elif original.brief:  # only what starts slowly may be right
        return measure(source, task, time_the_only_one)
    return verdict


def _without_slow_starters(verdict: Verdict) -> Verdict | None:
    """The verdict among the others; None when none of them is right."""
    known = kinds()
    rows = _crown([replace(row, right=row.right and not known[row.backend].slow_start) for row in verdict.rows])
    return replace(verdict, rows=tuple(rows)) if any(row.chosen for row in rows) else None


def look(kind: BackendKind, source: Source) -> Usable:
    """Whether a backend can run here and has what it is made from."""
    if (source.bundle if kind.needs == "bundle" else source.checkpoint) is None:
        return Usable(kind.name, False, "", f"needs a {kind.needs}", _how_to_give(kind))
    if source.vocabulary is not None and kind.needs == "checkpoint":
        return Usable(kind.name, False, "", ASKS_PROMPTS)
    try:
        return kind.probe()
    except Exception as failure:
        return Usable(kind.name, False, "", f"looking for it failed: {in_one_line(failure)}")


def assess(kind: BackendKind, found: Usable, source: Source, task: Task, timed: bool = True) -> Row:
    """One row of the table. The backend is let go afterwards, so that two large models are never held at once."""
    if not found.usable:
        return Row(kind.name, False, reason=found.reason, install=found.install)
    try:
        backend = create(kind, source)
        error, iou = check_golden(backend, source.golden)
        right, reason = within_limits(error, iou, source.golden.allowing(getattr(backend, "precision", PLAIN.name)))
        row = Row(kind.name, True, backend.detail, reason, error=error, iou=iou, right=right)
        return replace(row, ms=time_backend(backend, task, source)) if right and timed else row
    except Exception as failure:
        return Row(kind.name, False, found.detail, in_one_line(failure))


def check_golden(backend: Backend, golden: Golden) -> tuple[float, float]:
    """(relative L2 error, mean mask IoU) on the golden sample, all prompts decoded; the error is the larger one of logits and
    presence. NaN or infinity, and presence where there should be none or none where there should be, give an infinite error.

    A mask counts where one of the two holds something: agreement on nothing says nothing. With no such mask the IoU is 1,
    and the error alone decides. Raises BackendError when the backend fails.
    """
    if golden.label_map is not None:
        return _check_folded(backend, golden)
    with failing_as(backend.name, "on the golden sample"):
        runner = ChunkedRunner(backend)
        keys, values = runner.encode_text(golden.token_ids, golden.token_mask)
        text = keys, values, to_length(golden.token_mask, keys.shape[-1], 1)
        found = Asker(runner, text, Gate(None, 1), 1).about_pixels(golden.image)[0]
        presence, logits = found.presence, np.asarray(found.logits, np.float32)
    if (presence is None) != (golden.presence is None):
        return float("inf"), 0.0
    pairs = [(logits, golden.logits, 1e-12)]
    if presence is not None and golden.presence is not None:
        pairs.append(
            (np.asarray(presence, np.float32), golden.presence, 1.0)
        )  # a logit near 0 is not judged by its own size
    if any(got.shape != want.shape or not np.isfinite(got).all() for got, want, _ in pairs):
        return float("inf"), 0.0
    error = max(
        float(np.linalg.norm(got - want)) / max(float(np.linalg.norm(want)), least) for got, want, least in pairs
    )
    got, want = logits > 0, golden.logits > 0
    telling = (got | want).any((-2, -1)).ravel()
    return error, float(pair_iou(got, want)[telling].mean()) if telling.any() else 1.0


def _check_folded(backend: Backend, golden: Golden) -> tuple[float, float]:
    """(relative L2 error of logits and presence, share of the label map that is right) of a folded bundle's golden sample; NaN,
    or something that lacks or has another shape, gives an infinite error."""
    with failing_as(backend.name, "on the golden sample"):
        found = backend.labels(backend.encode_image(golden.image), tuple(FOLDED))  # type: ignore[attr-defined]
    label_map, error = found.get(LABEL_MAP.name), 0.0
    logits = golden.logits if golden.logits.size else None
    for name, want, least in ((LOGITS.name, logits, 1e-12), (PRESENCE_LOGITS.name, golden.presence, 1.0)):
        got = None if want is None or name not in found else np.asarray(found[name], np.float32)[:, : want.shape[1]]
        if (want is None) != (name not in found) or (got is not None and want is not None and got.shape != want.shape):
            return float("inf"), 0.0
        if got is not None and want is not None:
            error = max(error, float(np.linalg.norm(got - want)) / max(float(np.linalg.norm(want)), least))
    wanted = golden.label_map
    if label_map is None or wanted is None or label_map.shape != wanted.shape or not np.isfinite(error):
        return float("inf"), 0.0
    return error, float((label_map == wanted).mean())


def pair_iou(got: Array, want: Array) -> Array:
    """IoU of every (picture, prompt) pair of masks [B, K, h, w], [B * K]; 1 where both masks are empty."""
    inter, union = (m.sum((-2, -1)).ravel() for m in (got & want, got | want))
    return np.where(union == 0, 1.0, inter / np.maximum(union, 1))


def within_limits(error: float, iou: float, golden: Golden) -> tuple[bool, str]:
    """(right, reason why not)."""
    if not np.isfinite(error):
        return False, "wrong: its logits or presence are not finite, or of another shape than the golden sample's"
    if error > golden.relative:
        return False, f"wrong: error {error:.2e} on the golden sample, at most {golden.relative:.0e} allowed"
    if iou < golden.iou:
        return False, f"wrong: {golden.judged} {iou:.4f} on the golden sample, at least {golden.iou} expected"
    return True, ""


def time_backend(backend: Backend, task: Task, source: Source, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median milliseconds of a first question (picture encoded, presence read, every prompt decoded) at the task's shape, or the
    nearest that a profile allows, after warm-up; up to RUNS runs or SECONDS."""
    side = -(-task.size // source.stride) * source.stride
    runner = ChunkedRunner(backend, profile=source.profile)
    height, width = side, side
    if runner.profile is not None:
        spans = (runner.profile.ranges[axis] for axis in "HW")
        height, width = (min(max(side, span.min), span.max) for span in spans)
    image = np.random.default_rng(0).uniform(-1, 1, (task.batch, 3, height, width)).astype(np.float32)
    question = _first_question(runner, task, source)
    return 1000 * float(np.median(repeated(lambda: question(image), RUNS, WARM_UP, SECONDS, clock)))


def _first_question(runner: ChunkedRunner, task: Task, source: Source) -> Callable[[Array], object]:
    """Asks about pixels [B, 3, H, W]: as many prompts as the task says, or for all that a folded bundle answers."""
    golden = source.golden
    if golden.label_map is not None:
        return lambda image: [runner.labels(about, FOLDED) for about in joined(runner.encode(image)[0])]
    keys, values = runner.encode_text(golden.token_ids[:1], golden.token_mask[:1])
    mask = to_length(golden.token_mask[:1], keys.shape[-1], 1)
    text = tuple(np.repeat(array, task.prompts, axis=0) for array in (keys, values, mask))
    return Asker(runner, text, Gate(None, 1), source.stride).about_pixels  # type: ignore[arg-type]


def verdict_key(source: Source, task: Task) -> str:
    """Hash of everything that may change the verdict."""
    backends = {name: kind.identity for name, kind in kinds().items()}
    return _key(source, {"task": asdict(task), "brief": source.brief, "backends": backends})


def _key(source: Source, question: dict[str, object]) -> str:
    shapes = None if source.profile is None else source.profile.to_json()
    about = {"weights": source.digest, "shapes": shapes, "device": device_key(), "versions": library_versions(),
             "threads": source.threads, "on": source.device, "plans": source.plans, **question}  # fmt: skip
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _crown(rows: list[Row]) -> list[Row]:
    """Mark the fastest right one. An untimed row is the only one that could run."""
    right = [row for row in rows if row.right]
    best = min(right, key=lambda row: row.ms if row.ms is not None else float("inf"), default=None)
    return [replace(row, chosen=row is best) for row in rows]


def _read(key: str, task: Task) -> Verdict | None:
    """A remembered verdict; None for anything but a table that we could have written and that has a winner."""
    try:
        rows = tuple(Row(**row) for row in (verdicts.read(key) or {})["rows"])
        sound = all(_sound(row) for row in rows) and sum(row.chosen for row in rows) == 1
    except (KeyError, TypeError, ValueError):
        return None
    return Verdict(task, rows, cached=True) if sound else None


def _sound(row: Row) -> bool:
    texts = (row.backend, row.detail, row.reason, row.install)
    numbers = (row.error, row.iou, row.ms)
    return (
        all(isinstance(text, str) for text in texts) and row.backend in kinds()
        and all(number is None or (isinstance(number, (int, float)) and number >= 0) for number in numbers)
        and all(isinstance(flag, bool) for flag in (row.usable, row.right, row.chosen))
        and (not row.chosen or (row.usable and row.right))
    )  # fmt: skip


def _how_to_give(kind: BackendKind) -> str:
    return "export one: digseg-export" if kind.needs == "bundle" else "pass --checkpoint DIRECTORY"
