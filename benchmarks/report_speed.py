"""Tables and sentences of docs/runtime.md from the figures of `speed_peers.py` and `waterfall.py`; part of `report.py`."""

from __future__ import annotations

from typing import Any

OURS = "digseg-"  # how the names of our own rows begin
BASE = "digseg-onnxruntime"  # what ratios are taken against
Rows = dict[tuple[str, int, int, str], dict[str, Any]]


def rows_of(figures: dict[str, Any]) -> Rows:
    """Rows by (peer, size, prompts, question); those that failed are left out."""
    return {(r["peer"], r["size"], r["prompts"], r["question"]): r for r in figures["rows"] if "reason" not in r}


def counts_of(figures: dict[str, Any], size: int) -> list[int]:
    return sorted({row["prompts"] for row in figures["rows"] if row["size"] == size})


def peers_table(figures: dict[str, Any], size: int) -> tuple[list[str], list[list[str]]]:
    """Head and lines: who, parameters, operations, first and later questions, the most memory."""
    rows, counts = rows_of(figures), counts_of(figures, size)
    few, many = counts[0], counts[-1]
    head = ["model", "weights", "parameters (M)", f"GFLOP, K = {few}, {many}", *(f"first, K = {k}" for k in counts),
            *(f"later, K = {k}" for k in counts), "peak (MiB)"]  # fmt: skip
    lines = []
    for name, peer in figures["peers"].items():
        about = peer.get("sizes", {}).get(str(size))
        if not about:
            continue
        if "reason" in about:
            lines.append([peer["title"], peer["weights"], f"not measured: {about['reason']}", *["-"] * (len(head) - 3)])
            continue
        flops = [about["flops"][str(k)]["first"] / 1e9 for k in (few, many)]
        cells = [cell(rows.get((name, size, k, question)), name) for question in ("first", "later") for k in counts]
        peak = about.get("peak_bytes")
        lines.append([peer["title"], peer["weights"], f"{about['parameters'] / 1e6:.1f}", f"{flops[0]:.1f}, {flops[1]:.1f}",
                      *cells, "-" if peak is None else f"{peak / 2**20:.0f}"])  # fmt: skip
    return head, lines


def cell(row: dict[str, Any] | None, name: str) -> str:
    """Median, 95th percentile, and times ours."""
    if row is None:
        return "-"
    said = f"{row['median_ms']:.1f} ({row['p95_ms']:.1f})"
    return said if name == BASE else f"{said}, {row['over_ours']:.2f} x"


def slower(figures: dict[str, Any]) -> str:
    """Sentences: which peers answer sooner than our fastest backend, at which sizes and numbers of prompts, by how much, and with
    how many of our operations."""
    rows = rows_of(figures)
    found: dict[tuple[str, int, str], list[str]] = {}
    for (name, size, k, question), row in rows.items():
        own = [other["median_ms"] for (peer, *at), other in rows.items()
               if peer.startswith(OURS) and at == [size, k, question]]  # fmt: skip
        if name.startswith(OURS) or not own or row["median_ms"] >= min(own):
            continue
        theirs, ours = (operations(figures, peer, size, k, question) for peer in (name, BASE))
        said = f"{min(own) / row['median_ms']:.1f} x at K = {k} ({theirs / ours:.2f} of our operations)"
        found.setdefault((name, size, question), []).append(said)
    if not found:
        return "No peer of this run answers sooner than our fastest backend.\n"
    lines = [f"- {figures['peers'][name]['title']}, {question} question at {size} px: {', '.join(ratios)}\n"
             for (name, size, question), ratios in found.items()]  # fmt: skip
    return "Our fastest backend is slower than these, by so much:\n\n" + "".join(lines)


def operations(figures: dict[str, Any], name: str, size: int, prompts: int, question: str) -> int:
    """Floating-point operations of a question."""
    return int(figures["peers"][name]["sizes"][str(size)]["flops"][str(prompts)][question])


def ends(figures: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: first questions of ours from a picture to full-size masks and label map."""
    rows = rows_of(figures)
    shapes = sorted({(size, k) for name, size, k, question in rows if question == "whole" and name == BASE})
    lines = []
    for name in (name for name in figures["peers"] if name.startswith(OURS)):
        own = [rows.get((name, size, k, "whole")) for size, k in shapes]
        if any(own):
            lines.append(
                [figures["peers"][name]["title"], *("-" if row is None else f"{row['median_ms']:.1f}" for row in own)]
            )
    return ["end to end, milliseconds", *(f"{size} px, K = {k}" for size, k in shapes)], lines


def waterfall(figures: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: every technique with its factor over the one before, and what it costs."""
    lines = []
    for i, row in enumerate(figures["rows"]):
        before = figures["rows"][i - 1] if i else row
        won = round(100 * (row["mean_iou"] - before["mean_iou"]), 1) + 0.0  # no negative zero
        lines.append([
            row["technique"], row["question"], f"{row['median_ms']:.1f} ({row['p95_ms']:.1f})",
            f"{before['median_ms'] / row['median_ms']:.2f} x" if i else "-", f"{row['mean_iou']:.3f}",
            f"{won:+.1f}" if i else "-", "-" if row["false_area"] is None else f"{100 * row['false_area']:.2f} %",
        ])  # fmt: skip
    head = ["with", "question", "median (p95), ms", "factor", "mean IoU", "points", "false area"]
    return head, lines
