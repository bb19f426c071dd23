"""Tables of the README and of docs/, written from the committed figures: `python benchmarks/report.py [--check]`.

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`, and is one function of this module,
`report_docs.py` or `report_speed.py` over files of `benchmarks/results/`. Without --check pages are rewritten where they differ;
with it, exit code 1 and the pages' names. The charts that are drawn from such files are drawn again too (--charts); they are
compared by nobody, as another release of matplotlib draws other pixels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report_docs
import report_speed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
SETS = ("objects, seen pairs", "objects, unseen pairs", "textures", "microscopy", "aerial", "crops")
REAL = {
    "nuclei": "nuclei: nucleus", "dubai": "dubai: building, bare land, road, vegetation, water", "wheat": "wheat: wheat, soil",
}  # fmt: skip
REWORDED = ("objects, reworded, seen pairs", "objects, reworded, unseen pairs")


def figures(name: str) -> dict[str, Any]:
    """A file of benchmarks/results/."""
    body: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return body


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table with its head."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def bundled_alone() -> str:
    """The page on evaluation: wordings that no training prompt has, and every prompt by itself, too."""
    student, bundle = (figures(f"eval-tiny-{name}")["figures"] for name in ("student", "bundle"))
    head = ["mean IoU", "student, PyTorch fp32", "exported fp16 bundle", "each prompt alone"]
    rows = [
        [name, f"{student[name]:.3f}", f"{bundle[name]:.3f}", f"{student[f'{name}, each prompt alone']:.3f}"]
        for name in (*SETS[:2], *REWORDED, *SETS[2:])
    ]
    return markdown(head, rows)


def bundled_real() -> str:
    """README: what the bundled model reaches on real pictures, and what the wordings that people write keep of it."""
    lines = []
    for name, said in REAL.items():
        found = figures(f"eval-real-{name}")
        reached, about = found["figures"], next(iter(found["pictures"]))
        plain = reached[about]
        worded = [
            reached[f"{about}, {wording}"] / plain for wording in ("a photo of a X", "segment the X", '"X"', "Xs")
        ]
        lines.append([said, str(found["pictures"][about]), f"{plain:.3f}", *(f"{share:.3f}" for share in worded)])
    head = [
        "real pictures, test split",
        "pictures",
        "mean IoU",
        '"a photo of a X"',
        '"segment the X"',
        "in quotes",
        "plural",
    ]
    return markdown(head, lines)


def bench_cpu() -> str:
    """The page on the runtime: backends on a CPU, first questions against those of the first backend, later ones beside them."""
    backends = [one for one in figures("bench-cpu")["backends"] if one["rows"]]
    usual = [row["first"]["median_ms"] for row in backends[0]["rows"]]
    shapes = [f"{row['size']} px, K = {row['prompts']}" for row in backends[0]["rows"]]
    lines = []
    for one in backends:
        cells = [
            f"{row['first']['median_ms']:.1f} ({row['first']['median_ms'] / first:.2f} x), {row['later']['median_ms']:.1f}"
            for row, first in zip(one["rows"], usual)
        ]
        start = one["startup"]["first_ms"], one["startup"]["later"]["median_ms"]
        peak = max(row["peak_bytes"] for row in one["rows"]) / 2**20
        lines.append([f"`{one['backend']}`", *cells, f"{start[0] / 1000:.2f}, {start[1] / 1000:.2f}", f"{peak:.0f}"])
    return markdown(["backend", *shapes, "first, later start (s)", "peak (MiB)"], lines)


def whole(table: Callable[[], tuple[list[str], list[list[str]]]]) -> Callable[[], str]:
    """A table as text."""
    return lambda: markdown(*table())


def of_docs(table: Callable[[report_docs.Figures], report_docs.Table]) -> Callable[[], str]:
    return whole(lambda: table(figures))


def peers(size: int) -> Callable[[], str]:
    return whole(lambda: report_speed.peers_table(figures("speed-peers"), size))


TABLES: dict[str, Callable[[], str]] = {
    "bundled-alone": bundled_alone, "bundled-real": bundled_real, "bench-cpu": bench_cpu,
    "loader": of_docs(report_docs.loader), "false-alarms": of_docs(report_docs.false_alarms),
    "precisions": of_docs(report_docs.precisions), "int8-cpu": of_docs(report_docs.int8_on_cpus),
    "cpu-ceiling": of_docs(report_docs.ceilings), "unread-words": of_docs(report_docs.unread_words),
    "ablations": of_docs(report_docs.ablations),
    "leave-one-out": of_docs(report_docs.leave_one_out), "measured": of_docs(report_docs.measured),
    "learning": of_docs(report_docs.learning), "working-sizes": of_docs(report_docs.working_sizes),
    "refinement": lambda: report_docs.refinement(figures),
    "speed-peers-256": peers(256), "speed-peers-352": peers(352),
    "speed-peers-slower": lambda: report_speed.slower(figures("speed-peers")),
    "speed-peers-ends": whole(lambda: report_speed.ends(figures("speed-peers"))),
    "waterfall": whole(lambda: report_speed.waterfall(figures("waterfall"))),
}  # fmt: skip


def rewritten(page: str) -> str:
    """The text of a page with its tables as the figures have them. Raises SystemExit for a table that nobody makes."""

    def table(found: re.Match[str]) -> str:
        if found["name"] not in TABLES:
            raise SystemExit(f"no table {found['name']!r}; expected one of {', '.join(TABLES)}")
        return f"{found[1]}{TABLES[found['name']]()}{found[4]}"

    return MARKED.sub(table, page)


def draw_charts() -> None:
    """The charts whose figures are committed, where they are shown."""
    import ask_again
    import cpu_runtime
    import speed_chart
    import waterfall

    from digseg_engine.runtime import bench_chart

    for name, draw, folder in (
        ("ask-again", ask_again.draw, ROOT / "docs"), ("cpu-runtime", cpu_runtime.draw, RESULTS),
        ("bench-cpu", bench_chart.draw, RESULTS), ("speed-peers", speed_chart.draw, ROOT / "docs"),
        ("waterfall", waterfall.draw, ROOT / "docs"),
    ):  # fmt: skip
        draw(figures(name), folder / f"{name}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    parser.add_argument("--charts", action="store_true", help="also draw the charts again")
    options = parser.parse_args()
    stale = {path: text for path in PAGES if (text := rewritten(path.read_text("utf-8"))) != path.read_text("utf-8")}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} {'differs from the figures' if options.check else 'written'}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    if options.charts and not options.check:
        draw_charts()
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
