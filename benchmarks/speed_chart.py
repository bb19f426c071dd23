"""The chart of `speed_peers.py`: milliseconds against the number of prompts, a panel for every size and question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.files import replacing

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "digseg-"  # how the names of our own rows begin
QUESTIONS = {"first": "first question", "later": "later question, picture and prompts encoded"}


def picture_of(output: Path) -> Path:
    """Where the chart of a JSON goes: beside it, and of the committed figures to the pages that show it."""
    folder = RESULTS.parents[1] / "docs" if output.absolute().parent == RESULTS else output.parent
    return folder / f"{output.stem}.png"


def panels(figures: dict[str, Any]) -> list[tuple[int, str]]:
    """Sizes and questions of which more than our own rows exist."""
    found = sorted({(row["size"], row["question"]) for row in figures["rows"] if "reason" not in row})
    return [
        (size, question) for size, question in found
        if any(not row["peer"].startswith(OURS) for row in chosen(figures, size, question))
    ]  # fmt: skip


def chosen(figures: dict[str, Any], size: int, question: str) -> list[dict[str, Any]]:
    return [row for row in figures["rows"]
            if (row["size"], row["question"]) == (size, question) and "reason" not in row]  # fmt: skip


def draw(figures: dict[str, Any], path: Path) -> None:
    """Ours as full lines, peers dashed. Raises OutputError for a path that cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = panels(figures)
    across = min(2, max(1, len(shown)))
    down = -(-max(1, len(shown)) // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(5.6 * across, 4.2 * down + 1.4), squeeze=False, layout="constrained"
    )
    colours = dict(zip(figures["peers"], pyplot.get_cmap("tab20").colors[::2] + pyplot.get_cmap("tab20").colors[1::2]))
    lines: dict[str, Any] = {}
    for axis, (size, question) in zip(grid.flat, shown):
        rows = chosen(figures, size, question)
        for name, peer in figures["peers"].items():
            points = sorted((row["prompts"], row["median_ms"]) for row in rows if row["peer"] == name)
            if points:
                line = "o-" if name.startswith(OURS) else "s--"
                title = peer["title"].replace("`", "")
                (lines[title],) = axis.plot(*zip(*points), line, color=colours[name])
        counts = sorted({row["prompts"] for row in rows})
        axis.set(xscale="log", yscale="log", xlabel="prompts", ylabel="milliseconds (median)",
                 title=f"{size} px, {QUESTIONS[question]}")  # fmt: skip
        axis.set_xticks(counts, [str(k) for k in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in list(grid.flat)[len(shown) :]:
        axis.set_axis_off()
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
