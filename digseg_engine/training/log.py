"""What a stage leaves while it trains: `log.csv`, `curve.png` and, where asked for, event files for TensorBoard."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from digseg_engine.errors import UsageError
from digseg_engine.extras import install_line


class Log:
    """The stage's CSV log and its curve; rows at or after the first step (a resumed run's) are dropped first.

    Only one process `writes`. Raises UsageError when `tensorboard` is asked for and not installed.
    """

    def __init__(self, path: Path, start: int, writes: bool, tensorboard: bool = False) -> None:
        self.path, self.writes = path, writes
        writer = event_writer() if tensorboard else None
        self.events = writer(str(path.with_name("tensorboard")), purge_step=start) if writer and writes else None
        self.began = time.monotonic() - (self._rewind(start) if writes else 0.0)

    def _rewind(self, start: int) -> float:
        """Drop the rows that will be trained again; returns the seconds spent before them."""
        if not self.path.is_file():
            return 0.0
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < start]
        self.path.unlink()
        for row in rows:
            self._write(row)
        return float(rows[-1]["seconds"]) if rows else 0.0

    def add(self, step: int, parts: Mapping[str, float], learning_rate: float) -> None:
        if self.writes:
            self._write({"step": step, "seconds": round(time.monotonic() - self.began, 1), **parts})
        if self.events is not None:
            for name, value in (*parts.items(), ("learning_rate", learning_rate)):
                self.events.add_scalar(name, value, step)

    def _write(self, row: Mapping[str, Any]) -> None:
        fresh = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})

    def draw(self, title: str) -> None:
        if self.writes:
            draw_curve(self.path, self.path.with_name("curve.png"), title)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


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
    steps = [int(row["step"]) for row in rows]
    for name in names:
        values = torch.tensor([float(row[name]) for row in rows]).clamp(min=1e-6)
        (line,) = axes.plot(steps, values, alpha=0.2)
        window = max(1, len(values) // 40)
        smooth = torch.nn.functional.avg_pool1d(values[None], window, 1)[0] if len(values) > window else values
        axes.plot(steps[-len(smooth) :], smooth, label=name, color=line.get_color())
    axes.set(title=title, xlabel="step", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
