"""What `digseg eval` prints: a line per test set, then a line per class, the worst first."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from digseg_engine.evaluation.metrics import FALSE_PIXELS, Scores
from digseg_engine.worlds.scenes import SEEN_PAIRS, UNSEEN_PAIRS

ALL_SHOWN = 30  # classes of a single test set that are all printed
WIDTH = 120  # of what is piped into a file
WORST_SHOWN = 5  # of each set where there are several


def parts_of(name: str) -> dict[str, tuple[str, ...] | None]:
    """The groups of names that a test set's mean IoU is given for."""
    return (
        {f"{name}, seen pairs": SEEN_PAIRS, f"{name}, unseen pairs": UNSEEN_PAIRS}
        if "objects" in name
        else {name: None}
    )


def print_scores(scores: Mapping[str, Scores], title: str, seconds: Mapping[str, float], classes: bool = True) -> None:
    """Print the figures of every trial, the seconds it took, and the figures of its classes."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(title=title, title_justify="left")
    for column in ("test set", "mIoU", "alone", "cIoU", "Dice", "edge", "false", "alarms", "seconds"):
        table.add_column(column, justify="left" if column == "test set" else "right", no_wrap=column != "test set")
    for name, outcome in scores.items():
        s, alone = outcome.together, outcome.alone
        shared = [f"{value:.3f}" for value in (s.ciou(), s.dice(), s.boundary_iou())]
        shared += [f"{100 * alone.false_area():.2f} %", f"{100 * alone.false_rate():.1f} %", f"{seconds[name]:.1f}"]
        for i, (part, names) in enumerate(parts_of(name).items()):
            line = [f"{s.miou(names):.3f}", f"{alone.miou(names):.3f}", *(shared if i == 0 else [])]
            table.add_row(Text(part.removesuffix(" pairs")), *line)
    console.print(table)
    console.print("mIoU: one label per pixel from all prompts; alone, false, alarms: every prompt's own mask.\n"
                  f"false: area marked for prompts that are not there; alarms: how often over {FALSE_PIXELS} pixels together.",
                  highlight=False)  # fmt: skip
    for name, outcome in scores.items():
        share = f"{100 * outcome.alone.false_picture_rate():.0f} % of its pictures"
        console.print(f"{name}: {share} have a false alarm of some prompt", highlight=False)
    for name, outcome in scores.items():
        console.print(f"{name}: {presence_line(outcome)}", highlight=False)
    for name, outcome in scores.items() if classes else ():
        console.print(class_table(name, outcome, ALL_SHOWN if len(scores) == 1 else WORST_SHOWN))
    if not classes:
        console.print("figures of every class are in the report (--report)", highlight=False)
    console.print(f"{sum(seconds.values()):.1f} s", highlight=False)


def presence_line(outcome: Scores) -> str:
    """Presence in words: of every prompt's own mask, and of the label map where that says otherwise."""
    alone, together = outcome.alone, outcome.together
    by = "the readout" if alone.readout else "masks"
    said = (f"presence by {by}: MCC {alone.presence_mcc():.3f}, precision {alone.presence_precision():.3f}, recall "
            f"{alone.presence_recall():.3f}")  # fmt: skip
    one_by_one = f"each prompt alone pmF1 {alone.pm_f1():.3f}, cgF1 {alone.cg_f1():.1f}"
    return f"{said}; label map pmF1 {together.pm_f1():.3f}, cgF1 {together.cg_f1():.1f}; {one_by_one}"


def print_shares(shares: Mapping[str, float]) -> None:
    """What every wording reaches of the plain prompt's mean IoU."""
    for name, share in shares.items():
        print(f"{name}: {share:.3f} of the plain prompt's mIoU")


def class_table(name: str, outcome: Scores, most: int) -> Table:
    """Figures of the classes that occur, the worst first; at most `most` of them."""
    rows = [(row, own) for row, own in zip(outcome.together.rows(), outcome.alone.rows()) if row["iou"] is not None]
    rows.sort(key=lambda pair: float(str(pair[0]["iou"])))
    caption = f"{len(rows) - most} better ones are in the report (--report)" if len(rows) > most else None
    table = Table(title=f"{name}: classes, the worst first", title_justify="left", caption=caption)
    for column in ("class", "pictures", "IoU", "alone", "edge", "precision", "recall"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row, own in rows[:most]:
        figures = (row["iou"], own["iou"], row["boundary_iou"], row["precision"], row["recall"])
        cells = ["-" if value is None else f"{float(str(value)):.3f}" for value in figures]
        table.add_row(Text(str(row["name"])), str(row["pictures"]), *cells)
    return table
