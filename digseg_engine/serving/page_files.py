"""Which files the page is made of: its own, and what it shares with the JavaScript module."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
PAGE, MODULE = PACKAGE / "serving" / "page", PACKAGE / "js"
SHARED = ("rle.js",)


def page_files() -> dict[str, Path]:
    """Every file by its path in the page."""
    own = {path.relative_to(PAGE).as_posix(): path for path in sorted(PAGE.rglob("*")) if path.is_file()}
    return own | {name: MODULE / name for name in SHARED}
