"""The last step of an export is what its user does first: open the written folder and ask it.

Every backend that can run here answers the golden sample as read back from the file, and samples at the other corners of
the shape profile. A wrong answer, or no right one, and nothing is published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.contract import MASK_DECODER, PRESENCE, graphs_of
from digseg_engine.errors import DigsegError, VerificationError
from digseg_engine.precisions import PLAIN
from digseg_engine.runtime.backends import Backend, kinds
from digseg_engine.runtime.choice import check_golden, create, look, within_limits
from digseg_engine.runtime.source import Golden, Source, open_source
from digseg_export.comparison import compare
from digseg_export.folded import Folded, golden_arrays
from digseg_export.verify import Graphs, Sample

GOLDEN = "the golden sample"
Corners = dict[str, Sample]  # "the smallest shape" -> what PyTorch answers there


@dataclass(frozen=True)
class Answer:
    """What one backend answered: relative L2 error and mean mask IoU; `reason`: why it could not, "" when it was right."""

    backend: str
    at: str
    error: float | None = None
    iou: float | None = None
    reason: str = ""


def prove(
    folder: Path, golden: Sample, corners: Corners, progress: Callable[[str], None], folded: Folded | None = None
) -> list[Answer]:  # fmt: skip
    """Open the written bundle and let every backend that can run here answer. Raises VerificationError for a wrong one,
    for one that answers the golden sample but fails at another corner, and when none answers at all."""
    source = open_source(folder)
    _same(source.golden, _wanted(source.golden, golden) if folded is None else golden_arrays(folded, golden))
    asked = {at: as_golden(sample, source.golden, folded) for at, sample in corners.items()}
    answers: list[Answer] = []
    for kind in kinds().values():
        if look(kind, source).usable:
            progress(f"{kind.name} answers {GOLDEN}")
            answers += _ask(kind.name, lambda kind=kind: create(kind, source), source, asked, progress)  # type: ignore[misc]
    if not any(answer.at == GOLDEN and not answer.reason for answer in answers):
        said = "; ".join(f"{answer.backend}: {answer.reason}" for answer in answers) or "none can run here"
        raise VerificationError(f"no backend answers the written bundle ({said}); nothing was published; install "
                                "onnxruntime, or see `digseg doctor`")  # fmt: skip
    return answers


def _wanted(found: Golden, written: Sample) -> dict[str, Any]:
    """What the golden sample of an open bundle should hold."""
    pictures, prompts = len(found.image), len(found.token_ids)
    presence = None if written.presence is None else written.presence[:pictures, :prompts]
    return {"image": written.image[:pictures], "token_ids": written.token_ids[:prompts], "presence": presence,
            "token_mask": written.token_mask[:prompts], "logits": written.logits[:pictures, :prompts]}  # fmt: skip


def _same(found: Golden, wanted: dict[str, Any]) -> None:
    """The golden sample that a reader gets is the one that PyTorch answered: numbers, not shapes."""
    for name, want in wanted.items():
        held = getattr(found, name)
        if not (np.array_equal(held, want) if held is not None and want is not None else held is want):
            raise VerificationError(f"golden.safetensors does not hold the {name} that was written; nothing was published; "
                                    "use another release of safetensors and report it")  # fmt: skip


def _ask(
    name: str,
    create: Callable[[], Backend],
    source: Source,
    corners: dict[str, Golden],
    progress: Callable[[str], None],
) -> list[Answer]:
    """One backend at every corner. One that fails before its first answer is only noted: the machine is at fault; so is one
    that computes in less than float32 by itself."""
    answers: list[Answer] = []
    try:
        backend = create()
        computes = getattr(backend, "precision", PLAIN.name)
        if computes != PLAIN.name:  # its own doing, whatever the bundle says
            return [Answer(name, GOLDEN, reason=f"computes in {computes}: says nothing about the bundle")]
        answers.append(_answer(name, GOLDEN, *check_golden(backend, source.golden), source.golden))
        for at, golden in corners.items():
            progress(f"{name} answers at {at}")
            answers.append(_answer(name, at, *check_golden(backend, golden), source.golden))
    except VerificationError:
        raise
    except Exception as error:  # a driver, a library, the memory: whatever a backend of others raises
        if answers or isinstance(error, MemoryError):
            at = list(corners)[len(answers) - 1] if answers else GOLDEN
            raise VerificationError(f"the written bundle fails in {name} at {at}: {_line(error)}; nothing was "
                                    "published") from error  # fmt: skip
        answers.append(Answer(name, GOLDEN, reason=_line(error)))
    return answers


def as_golden(sample: Sample, limits: Golden, folded: Folded | None = None) -> Golden:
    """A sample in the form that backends are checked by."""
    if folded is not None:
        return replace(limits, **golden_arrays(folded, sample))  # type: ignore[arg-type]
    return Golden(np.ascontiguousarray(sample.image), sample.token_ids, sample.token_mask, sample.logits,
                  limits.relative, limits.iou, sample.presence)  # fmt: skip


def _answer(name: str, at: str, error: float, iou: float, golden: Golden) -> Answer:
    right, reason = within_limits(error, iou, golden)
    if not right:
        raise VerificationError(f"the written bundle is {reason.replace('the golden sample', at)} in {name}; nothing was "
                                "published")  # fmt: skip
    return Answer(name, at, error, iou)


def prove_large(folder: Path, golden: Sample) -> list[Answer]:
    """Of a large model only the golden sample, on graphs that map their weights: a session as a user makes it would hold
    all of them in float32 (see `docs/export.md`)."""
    source = open_source(folder)
    stored = source.golden
    _same(stored, _wanted(stored, golden))
    specs = list(graphs_of(stored.presence is not None).values())
    graphs = Graphs.of(folder, specs, on_cpu=True, weights_folder=folder)
    feeds: dict[str, Any] = {name: getattr(stored, name) for name in ("image", "token_ids", "token_mask")}
    for spec in specs:
        feeds |= dict(zip([tensor.name for tensor in spec.outputs], graphs.run(spec, feeds)))
    check = compare("written bundle", graphs.names[MASK_DECODER.file], stored.logits, feeds["logits"])
    error = check.relative
    if stored.presence is not None:
        error = max(error, compare("written bundle", PRESENCE.file, stored.presence, feeds["presence"], False).relative)
    iou = 1.0 if check.iou is None else check.iou
    return [_answer("onnxruntime, weights mapped", GOLDEN, error, iou, stored)]


def _line(error: BaseException) -> str:
    return " ".join((str(error) if isinstance(error, DigsegError) else repr(error)).split())


def plain(answers: list[Answer]) -> list[dict[str, Any]]:
    return [vars(answer) for answer in answers]
