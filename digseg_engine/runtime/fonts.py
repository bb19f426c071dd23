"""A font for a legend in any script: Pillow's own where it has the letters, else one found on this machine, else the letters
are written as their code points. `$DIGSEG_FONT` names one to try first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

SUFFIXES = (".ttf", ".otf", ".ttc")
MISSING = "\U0010ffff"  # no font has it: what is drawn for it is the box that stands for a missing letter
MOST_FONTS = 400  # opened in a search
PREFERRED = ("dejavusans.", "notosans-regular", "notosanscjk", "arialuni", "arial unicode", "unifont", "wqy", "msyh",
             "segoeui.", "notosans")  # fmt: skip


def font_for(text: str, size: int) -> Any:
    """The font, at `size` pixels, that has the most letters of `text`."""
    letters = frozenset(text) - set(" ")
    own = _own(size)
    if not letters or all(ord(letter) < 127 for letter in letters) or not missing(letters, own):
        return own
    path = _best(letters)
    return own if path is None else ImageFont.truetype(path, size)


def readable(text: str, font: Any) -> str:
    """The text with every letter that the font lacks as its code point: \\u9053."""
    lacking = missing(frozenset(text), font)
    return "".join(_code_point(letter) if letter in lacking else letter for letter in text)


def _code_point(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else f"\\U{ord(letter):08x}"


def missing(letters: frozenset[str], font: Any) -> set[str]:
    """The letters that a font draws as the box for missing ones."""
    nothing = _drawn(font, MISSING)
    controls = {letter for letter in letters if ord(letter) < 32}
    return controls | {letter for letter in letters if ord(letter) > 126 and _drawn(font, letter) == nothing}


def _drawn(font: Any, letter: str) -> tuple[Any, bytes]:
    try:
        mask = font.getmask(letter, mode="L")
    except (UnicodeError, OSError, ValueError):  # the first: Pillow's bitmap font, which is Latin only; surrogates
        return (0, 0), b""
    return mask.size, bytes(mask)


@lru_cache(8)
def _own(size: int) -> Any:
    return ImageFont.load_default(size)


@lru_cache(256)
def _best(letters: frozenset[str]) -> str | None:
    """Path of the font that lacks the fewest of the letters, or None when none is better than Pillow's own."""
    best, lacking = None, len(missing(letters, _own(15)))
    for path in _installed():
        if not lacking:
            break
        try:
            count = len(missing(letters, ImageFont.truetype(path, 15)))
        except (OSError, ValueError):
            continue
        if count < lacking:
            best, lacking = path, count
    return best


@lru_cache(1)
def _installed() -> tuple[str, ...]:
    """Fonts of this machine, those that know many scripts first."""
    named = os.environ.get("DIGSEG_FONT")
    paths = sorted(set(_fonts_in(_folders())), key=lambda p: (_rank(p), p))[:MOST_FONTS]
    return (named, *paths) if named else tuple(paths)


def _rank(path: str) -> int:
    name = Path(path).name.lower()
    return next((i for i, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))


def _folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    return [home / ".fonts", home / ".local" / "share" / "fonts", *(Path(p) / "fonts" for p in shared.split(":") if p)]


def _fonts_in(folders: list[Path]) -> Iterator[str]:
    for folder in folders:
        for where, _, names in os.walk(folder):
            yield from (os.path.join(where, name) for name in names if name.lower().endswith(SUFFIXES))
