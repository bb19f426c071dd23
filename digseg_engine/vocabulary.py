"""The vocabulary of a folded bundle: its names, the prompts they stand for, the file it is read from, and who is not in it.

Torch-free: exporter and runtime read the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from digseg_engine.contract import MOST_NAMES, Folding
from digseg_engine.errors import BundleError, InputError, UsageError
from digseg_engine.words import counted, did_you_mean

RULE = "strongest"
SHOWN = 10  # names that an error lists
BETWEEN = " = "  # name = prompt


@dataclass(frozen=True)
class Vocabulary:
    """names: what is asked for and shown; prompts: what was encoded for each; labels_only: the label map is all there is."""

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    labels_only: bool = False

    @property
    def folding(self) -> Folding:
        """What the graphs of its bundle depend on."""
        return Folding(len(self.names), self.labels_only)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.names)}

    def numbers(self, asked: Sequence[str]) -> list[int]:
        """The place of every name that is asked for. Raises InputError for one that is not in the list."""
        for name in asked:
            if name not in self._numbers:
                meant = did_you_mean(name, self.names)
                raise InputError(f"{name!r:.60} is not in this bundle's vocabulary{meant}; it answers for {self.in_words()}; a "
                                 "bundle exported without --vocabulary takes any prompt")  # fmt: skip
        return [self._numbers[name] for name in asked]

    def in_words(self) -> str:
        """The names, not all of many."""
        shown = ", ".join(self.names[:SHOWN])
        left = len(self.names) - SHOWN
        return f"{counted(len(self.names), 'name')}: {shown}{f' and {left} more' if left > 0 else ''}"

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"names": list(self.names), "prompts": list(self.prompts), "rule": RULE, "labels_only": self.labels_only}

    @classmethod
    def from_json(cls, body: Any) -> Vocabulary:
        """The vocabulary of a manifest. Raises ValueError for what is none."""
        if not isinstance(body, dict) or body.get("rule") != RULE or not isinstance(body.get("labels_only"), bool):
            raise ValueError("expected names, prompts, the rule `strongest` and labels_only")
        names, prompts = body.get("names"), body.get("prompts")
        lists = isinstance(names, list) and isinstance(prompts, list)
        if not lists or not 1 <= len(names) <= MOST_NAMES or len(prompts) != len(names):  # type: ignore[arg-type]
            raise ValueError(f"expected 1 to {MOST_NAMES} names and as many prompts")
        for text in (*names, *prompts):  # type: ignore[misc]
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{text!r:.60} is no name")
        if len(set(names)) < len(names):  # type: ignore[arg-type]
            raise ValueError("a name stands there twice")
        return cls(tuple(names), tuple(prompts), body["labels_only"])  # type: ignore[arg-type]


def read_vocabulary(path: Path, labels_only: bool = False) -> Vocabulary:
    """A file with one prompt a line, `name = prompt` where what is shown differs from what is asked; blank lines and lines
    that begin with # are left out. Raises InputError naming the line that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"vocabulary {path} cannot be read: {reason}; expected one prompt a line") from error
    found: dict[str, str] = {}
    where: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        left, between, right = f" {text} ".partition(BETWEEN)
        name, prompt = left.strip(), (right if between else left).strip()
        if not name or not prompt:
            lacks = "prompt" if name else "name"
            raise InputError(f"{path} line {number}: {line!r:.60} has no {lacks}; expected a prompt, or name = prompt")
        for what, text in (("name", name), ("prompt", prompt)):
            if (what, text) in where:
                raise InputError(f"{path} line {number}: the {what} {text!r:.60} stands in line {where[what, text]} already; "
                                 "expected each once")  # fmt: skip
            where[what, text] = number
        if len(found) == MOST_NAMES:
            raise InputError(f"{path} line {number}: more than {MOST_NAMES} names; a label has 16 bits; split the list")
        found[name] = prompt
    if not found:
        raise InputError(f"{path} has no prompt; expected one a line")
    return Vocabulary(tuple(found), tuple(found.values()), labels_only)


def vocabulary_of(manifest: dict[str, Any], where: Path | str) -> Vocabulary | None:
    """The vocabulary of a manifest; None for an open bundle's. Raises BundleError for one that cannot be read."""
    if manifest.get("vocabulary") is None:
        return None
    try:
        return Vocabulary.from_json(manifest["vocabulary"])
    except ValueError as error:
        raise BundleError(
            f"{where}: vocabulary cannot be used: {error}; export it again with `digseg-export`"
        ) from error


def check_folded(
    vocabulary: Vocabulary, against: Sequence[str], all_prompts: bool, rule: str | None, refine: int = 0
) -> None:
    """Raises UsageError for what can be asked of an open bundle alone."""
    only_open = "export it without --vocabulary for that"
    if against:
        raise UsageError(
            f"this bundle's names compete inside its graph, and contrast prompts cannot join them; {only_open}"
        )
    if all_prompts:
        raise UsageError(
            f"this bundle turns names that are not there away inside its graph; leave all_prompts out, or {only_open}"
        )
    if refine:
        raise UsageError(
            f"this bundle holds no text for the reference to refine with; leave refine out, or {only_open}"
        )
    if rule not in (None, RULE):
        raise UsageError(f"this bundle's labels are those of the strongest name, {rule!r} was asked for; leave labels out, or "
                         f"{only_open}")  # fmt: skip
