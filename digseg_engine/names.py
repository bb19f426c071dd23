"""File names from prompts and pictures: unique on every file system, short enough for it, the same for the same input."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

SLUG_BYTES = 64  # of a prompt's part of a file name, in UTF-8
STEM_BYTES = 120  # of a picture's part; with endings and a prompt's part well below the usual 255
KEPT = ("L", "M", "N")  # letters, marks, numbers: everything else becomes a hyphen


def key(name: str) -> str:
    """What two names must differ in on file systems that ignore case or compose letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold())


def mask_names(prompts: Sequence[str]) -> list[str]:
    """File-name parts for prompts, unique: "red circle" -> "red-circle"; clashes get the next free number."""
    taken: set[str] = set()
    names: list[str] = []
    for prompt in prompts:
        slug = name = slug_of(prompt)
        number = 1
        while key(name) in taken:
            number += 1
            name = f"{slug}-{number}"
        taken.add(key(name))
        names.append(name)
    return names


def slug_of(prompt: str) -> str:
    """Lower-case letters, marks and digits of any script, hyphens between; "prompt" when nothing is left."""
    text = unicodedata.normalize("NFC", prompt).lower()
    letters = "".join(
        character if unicodedata.category(character)[0] in KEPT or character == "_" else " " for character in text
    )
    return cut("-".join(letters.split())[:48], SLUG_BYTES).strip("-") or "prompt"


def cut(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8, whole characters."""
    return text.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore")


class Named(Protocol):
    """What a picture's place tells about its name: a `Path`, or an address with the same parts."""

    @property
    def name(self) -> str: ...
    @property
    def stem(self) -> str: ...
    @property
    def parent(self) -> Any: ...


def stems(paths: Sequence[Named]) -> list[str]:
    """Output names for different pictures, unique, whatever their order: the file's stem; where stems clash the whole name
    with its folder; where those clash too, or are too long, with a hash of the path as well."""
    names = [path.stem for path in paths]
    for longer in (lambda p: f"{p.parent.name}-{p.name}".strip("-."), _hashed):
        counts = Counter(key(name) for name in names)
        names = [
            longer(path) if counts[key(name)] > 1 or len(name.encode("utf-8", "ignore")) > STEM_BYTES else name
            for path, name in zip(paths, names)
        ]
    return _numbered(names)


def _hashed(path: Named) -> str:
    digest = hashlib.sha256(str(path).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{cut(path.stem, STEM_BYTES - 9)}-{digest}"


def _numbered(names: list[str]) -> list[str]:
    """The same path given twice, and the rare name that equals another's longer one, get a number."""
    taken: set[str] = set()
    found: list[str] = []
    for name in names:
        free, number = name, 1
        while key(free) in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(key(free))
        found.append(free)
    return found
