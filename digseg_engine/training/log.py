"""What a stage leaves while it trains: `log.csv`, `curve.png`, and the same figures for its trackers."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor

from digseg_engine.files import replacing, write_bytes
from digseg_engine.training.meter import FIGURES


class Rows:
    """A CSV of figures by steps done, to which rows are added; those after `done` steps (of an interrupted run) are dropped
    first."""

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.seconds = self._rewind(done)  # spent before the first new row

    def _rewind(self, done: int) -> float:
        if not self.path.is_file():
            return 0.0
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if _whole(row) and int(row["step"]) <= done]
        body = io.StringIO(newline="")
        writer = csv.DictWriter(body, fieldnames=reader.fieldnames or ["step"], lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path, body.getvalue().encode()) if rows else self.path.unlink()
        return float(rows[-1]["seconds"]) if rows else 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; what a row lacks (a loss of every 16th step) leaves its cell empty."""
        columns = self._columns() or list(row)
        fresh = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})

    def _columns(self) -> list[str]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return next(csv.reader(file), [])


class Log:
    """The stage's CSV log, its curve and its trackers; `done` steps lie behind this run. Only one process `writes`.

    Steps are counted from 1 everywhere: a row of step 10 is about the first ten.
    """

    def __init__(self, path: Path, done: int, writes: bool, trackers: Sequence[GeneralTracker] = ()) -> None:
        self.path, self.writes, self.trackers = path, writes, trackers
        self.rows = Rows(path, done) if writes else None
        self.sums: dict[str, Tensor] = {}  # on the losses' device: reading them each step would wait for it
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic() - (self.rows.seconds if self.rows else 0.0)

    def note(self, parts: Mapping[str, Tensor]) -> None:
        """The parts of one step's loss; a row holds the mean of every part over the steps since the row before."""
        for name, value in parts.items():
            value = torch.as_tensor(value, dtype=torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def add(self, step: int, learning_rate: float, more: Mapping[str, float] | None = None) -> None:
        """Write the row of all steps up to `step`, with `more` figures behind the losses."""
        parts = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        figures = {**parts, **(more or {})}
        if self.rows is not None:
            self.rows.add({"step": step, "seconds": self.seconds(), **figures})
        self.track({**figures, "learning_rate": learning_rate}, step)

    def seconds(self) -> float:
        """Spent on the stage so far, interruptions left out."""
        return round(time.monotonic() - self.began, 1)

    def track(self, figures: Mapping[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(dict(figures), step=step)

    def draw(self, title: str) -> None:
        if self.writes and self.path.is_file():
            draw_curve(self.path, self.path.with_name("curve.png"), title)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether a row was written to its end (a kill can tear the last one)."""
    return None not in row.values() and row["step"].isdigit()


def draw_curve(log: Path, picture: Path, title: str) -> None:
    """Plot every loss of a training log against the step, log scale, raw and smoothed; where the stage was validated
    (`validation.csv` beside the log), its figures too, the qualities on an axis of their own."""
    figure = curve(log, title)
    with replacing(picture) as path:
        figure.savefig(path, dpi=110, format="png")
    _pyplot().close(figure)


def curve(log: Path, title: str) -> Any:
    """The figure of `draw_curve`, for matplotlib."""
    figure, axes = _pyplot().subplots(figsize=(7, 4))
    for name, steps, values in _columns_of(log):
        (line,) = axes.plot(steps, values, alpha=0.2)
        window = max(1, len(values) // 40)
        smooth = torch.nn.functional.avg_pool1d(values[None], window, 1)[0] if len(values) > window else values
        axes.plot(steps[-len(smooth) :], smooth, label=name, color=line.get_color())
    axes.set(title=title, xlabel="step", yscale="log")
    validated = _columns_of(log.with_name("validation.csv"))
    quality = axes.twinx() if validated else None
    for name, steps, values in validated:
        if name == "loss":
            axes.plot(steps, values, "k.--", label="validation loss")
        elif quality is not None and name in ("miou", "presence_mcc"):
            quality.plot(
                steps, values, "o-" if name == "miou" else "s:", markersize=3, color="0.3", label=f"validation {name}"
            )
    if quality is not None:
        quality.set(ylim=(0, 1), ylabel="validation: mean IoU, presence MCC")
        quality.legend(loc="center left")
    axes.legend(loc="upper right" if quality else "best")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def _columns_of(table: Path) -> list[tuple[str, list[int], Tensor]]:
    """(name, steps, values) of every column of figures that holds any; empty cells are left out."""
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for name in [name for name in rows[0] if name not in ("step", "seconds", *FIGURES)]:
        logged = [row for row in rows if row[name]]
        values = torch.tensor([float(row[name]) for row in logged]).clamp(min=1e-6)
        if logged:
            found.append((name, [int(row["step"]) for row in logged], values))
    return found


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
