"""What a stage leaves while it trains: `log.csv`, `curve.png` and, where asked for, event files for TensorBoard."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from digseg_engine.errors import UsageError
from digseg_engine.extras import install_line
from digseg_engine.files import replacing, write_bytes


class Log:
    """The stage's CSV log and its curve; rows at or after the first step (a resumed run's) are dropped first.

    Only one process `writes`. Raises UsageError when `tensorboard` is asked for and not installed.
    """

    def __init__(self, path: Path, start: int, writes: bool, tensorboard: bool = False) -> None:
        self.path, self.writes = path, writes
        writer = event_writer() if tensorboard else None
        self.events = writer(str(path.with_name("tensorboard")), purge_step=start) if writer and writes else None
        self.sums: dict[str, Tensor] = {}  # on the losses' device: reading them each step would wait for it
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic() - (self._rewind(start) if writes else 0.0)

    def _rewind(self, start: int) -> float:
        """Drop the rows that will be trained again; returns the seconds spent before them."""
        if not self.path.is_file():
            return 0.0
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if _whole(row) and int(row["step"]) < start]
        body = io.StringIO(newline="")
        writer = csv.DictWriter(body, fieldnames=reader.fieldnames or ["step"], lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path, body.getvalue().encode()) if rows else self.path.unlink()
        return float(rows[-1]["seconds"]) if rows else 0.0

    def note(self, parts: Mapping[str, Tensor]) -> None:
        """The parts of one step's loss; a row holds the mean of every part over the steps since the row before."""
        for name, value in parts.items():
            value = torch.as_tensor(value, dtype=torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def add(self, step: int, learning_rate: float) -> None:
        """Write the row of all steps up to `step`."""
        parts = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        if self.writes:
            self._write({"step": step, "seconds": round(time.monotonic() - self.began, 1), **parts})
        if self.events is not None:
            for name, value in (*parts.items(), ("learning_rate", learning_rate)):
                self.events.add_scalar(name, value, step)

    def _write(self, row: Mapping[str, Any]) -> None:
        """Add a row; a part that a row lacks (a loss of every 16th step) leaves its cell empty."""
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

    def draw(self, title: str) -> None:
        if self.writes:
            draw_curve(self.path, self.path.with_name("curve.png"), title)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def _whole(row: Mapping[str, Any]) -> bool:
    """Whether a row was written to its end (a kill can tear the last one)."""
    return None not in row.values() and row["step"].isdigit()


def event_writer() -> Any:
    """PyTorch's writer of event files. Raises UsageError naming the package it needs."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs the package tensorboard, which is not installed; run: "
                         f"{install_line('tensorboard')}, or leave the option out") from error  # fmt: skip
    return SummaryWriter


def draw_curve(log: Path, picture: Path, title: str) -> None:
    """Plot every column of a training log against the step, log scale, raw and smoothed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with log.open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("step", "seconds")]
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in names:
        logged = [row for row in rows if row[name]]
        steps = [int(row["step"]) for row in logged]
        values = torch.tensor([float(row[name]) for row in logged]).clamp(min=1e-6)
        (line,) = axes.plot(steps, values, alpha=0.2)
        window = max(1, len(values) // 40)
        smooth = torch.nn.functional.avg_pool1d(values[None], window, 1)[0] if len(values) > window else values
        axes.plot(steps[-len(smooth) :], smooth, label=name, color=line.get_color())
    axes.set(title=title, xlabel="step", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with replacing(picture) as path:
        figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
