"""A prompt about a labelled picture, and the wordings that people put a name into. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "some {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of {}",
    "there is {} here",
    "segment the {}",
    "segment all {}",
    "find the {}",
    "show me the {}",
    "mask of the {}",
    "an image of a {}",
    "the {} in this picture",
    '"{}"',
)
IRREGULAR = {
    "nucleus": "nuclei",
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "leaf": "leaves",
}


@dataclass(frozen=True)
class Query:
    """A prompt as typed and the canonical name whose region it means."""

    text: str
    name: str


def plural(name: str) -> str:
    """The plural of a name's last word by the rules of English; a name that ends with s stays ("trees", and "grass" too)."""
    before, space, last = name.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    elif not last.endswith("s"):
        last += "s"
    return before + space + last
