"""The chart of `digseg bench`: milliseconds against the number of prompts, a panel for every size and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.files import replacing


def draw(body: dict[str, Any], path: Path) -> None:
    """First questions as full lines, later ones dashed, a colour for every backend. Raises OutputError for a path that cannot
    be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = sorted({(row["size"], row["batch"]) for one in body["backends"] for row in one["rows"]})
    figure, axes = pyplot.subplots(
        1, max(1, len(shapes)), figsize=(4.2 * max(1, len(shapes)), 4), squeeze=False, layout="constrained"
    )
    for axis, shape in zip(axes[0], shapes):
        for number, one in enumerate(body["backends"]):
            rows = [row for row in one["rows"] if (row["size"], row["batch"]) == shape and "reason" not in row]
            counts = [row["prompts"] for row in rows]
            for kind, line in (("first", "o-"), ("later", "s--")):
                if rows:
                    values = [row[kind]["median_ms"] for row in rows]
                    axis.plot(counts, values, line, color=f"C{number}", label=f"{one['backend']}, {kind}")
        axis.set(xscale="log", yscale="log", xlabel="prompts", ylabel="milliseconds (median)",
                 title=f"{shape[0]} px, {shape[1]} at once")  # fmt: skip
        if axis.lines:
            axis.legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
