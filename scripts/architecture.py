"""Draws docs/architecture.svg: the project's packages and modules, and which imports which, read from the source.

Usage: python scripts/architecture.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
SOURCES = {"digseg_engine": ROOT, "digseg_export": ROOT / "export", "digseg_triton": ROOT / "triton_kernels"}
DEEP = ("digseg_engine.training",)  # packages whose parts are boxes of their own
WIDTH, ROW, BOX, HEIGHT = 980, 92, 132, 34


def box_of(module: str) -> str:
    """The box a module belongs to: `runtime` for digseg_engine.runtime.engine, `training.recipes`, `digseg_export`."""
    package, *parts = module.split(".")
    if package != "digseg_engine":
        return package
    if not parts:
        return "digseg_engine"
    if parts[0] == "training" and len(parts) > 1:
        folder = ROOT / "digseg_engine" / "training" / parts[1]
        return f"training.{parts[1]}" if folder.is_dir() else "training"
    return parts[0]


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the project."""
    found = {}
    for package, base in SOURCES.items():
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows() -> set[tuple[str, str]]:
    """(box, box it imports)."""
    known, found = modules(), set()
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in known else node.module for name in names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            targets = {box_of(name) for name in names if name.split(".")[0] in SOURCES}
            found |= {(box_of(module), target) for target in targets if target != box_of(module)}
    return {(a, b) for a, b in found if not {"digseg_engine", "__main__"} & {a, b}}


def layers(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Boxes by height: each stands above all that it imports; those of a circle share a height."""
    boxes = sorted({box for edge in edges for box in edge})
    height = dict.fromkeys(boxes, 0)
    for _ in boxes:
        for upper, lower in sorted(edges):
            if (lower, upper) not in edges and height[upper] <= height[lower] < len(boxes):
                height[upper] = height[lower] + 1
    rows: dict[int, list[str]] = {}
    for box in boxes:
        rows.setdefault(height[box], []).append(box)
    return [rows[level] for level in sorted(rows, reverse=True)]


def telling(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that do not follow from others: a -> c is left out where a -> b and b -> c are shown."""

    def reaches(start: str, end: str, without: tuple[str, str]) -> bool:
        seen, waiting = set(), [start]
        while waiting:
            box = waiting.pop()
            steps = {b for a, b in edges if a == box and (a, b) != without} - seen
            if end in steps:
                return True
            seen |= steps
            waiting += steps
        return False

    return {edge for edge in edges if not reaches(*edge, without=edge)}


def draw(edges: set[tuple[str, str]]) -> str:
    """The picture as SVG text."""
    rows = layers(edges)
    place = {}
    for level, row in enumerate(rows):
        for number, box in enumerate(row):
            place[box] = (WIDTH * (number + 1) / (len(row) + 1), ROW / 2 + level * ROW)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows)}" font-family="sans-serif" '
             'font-size="13"><rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for upper, lower in sorted(telling(edges)):
        (x1, y1), (x2, y2) = place[upper], place[lower]
        middle = (y1 + y2) / 2
        lines.append(f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}" '
                     'fill="none" stroke="#7a8ba0"/>')  # fmt: skip
    for box, (x, y) in sorted(place.items()):
        lines.append(f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}" rx="6" '
                     'fill="#e8f0fe" stroke="#345"/>')  # fmt: skip
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{box}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(arrows()), encoding="utf-8")
    print(f"{PICTURE}: {len(arrows())} arrows")
