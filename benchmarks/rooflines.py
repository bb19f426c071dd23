"""Ceilings measured on the spot, rates against them, and the roofline picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ELEMENTS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches with a plain copy and with a large matrix product."""

    gb_per_s: float
    tflop_per_s: dict[str, float]  # by element name

    def floor_ms(self, moved: int, flops: int, dtype: str) -> float:
        """Least time for `moved` bytes and `flops` operations: the larger of the two bounds."""
        return max(moved / (self.gb_per_s * 1e6), flops / (self.tflop_per_s[dtype] * 1e9))


def measure_ceilings(time_ms: Callable[[Callable[[], Any]], float], device: torch.device, side: int) -> Ceilings:
    """Copy of `side**2` fp32 values (read + write) and a `side`-wide matrix product per dtype, median times."""
    source = torch.empty(side * side, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    bandwidth = copied / time_ms(lambda: target.copy_(source)) / 1e6
    peaks = {}
    for dtype, name in ELEMENTS.items():
        width = side if dtype != torch.float32 else side // 2
        a = torch.randn(width, width, device=device).to(dtype)
        peaks[name] = 2 * width**3 / time_ms(lambda a=a: a @ a) / 1e9
    return Ceilings(bandwidth, peaks)


def rates(ms: float | None, moved: int, flops: int, dtype: str, ceilings: Ceilings | None) -> dict[str, float | None]:
    """GB/s, TFLOP/s and shares of the ceilings; all None where nothing was measured."""
    names = ("gb_per_s", "tflop_per_s", "share_of_bandwidth", "share_of_roofline")
    if ms is None or ceilings is None:
        return dict.fromkeys(names)
    speed = moved / ms / 1e6
    return dict(zip(names, (speed, flops / ms / 1e9, speed / ceilings.gb_per_s,
                            ceilings.floor_ms(moved, flops, dtype) / ms)))  # fmt: skip


def plot(rows: list[dict[str, Any]], ceilings: Ceilings, title: str, path: Path) -> bool:
    """Write the roofline of all measured rows as PNG. False, and no file, where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=140)
    peak = ceilings.tflop_per_s["fp16"]
    knee = peak * 1e3 / ceilings.gb_per_s
    intensity = [0.05, knee, 1e4]
    axes.loglog(intensity, [x * ceilings.gb_per_s / 1e3 if x < knee else peak for x in intensity], "k-", lw=1)
    measured = [row for row in rows if row["graph_ms"] and row["flops"]]
    for provider in sorted({row["provider"] for row in measured}):
        points = [row for row in measured if row["provider"] == provider]
        x = [row["flops"] / row["bytes"] for row in points]
        axes.loglog(x, [row["flops"] / row["graph_ms"] / 1e9 for row in points], "o", ms=5, label=provider)
    axes.set(xlabel="FLOP per byte of compulsory traffic", ylabel="TFLOP/s (graph-replayed median)", title=title)
    if measured:
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    return True
