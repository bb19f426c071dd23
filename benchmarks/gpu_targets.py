"""The speed and memory targets of the kernels, judged from the rows of one run: met, missed or not measured."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]
NOT_MEASURED = "not measured"


def _value(rows: Rows, case: str, provider: str, key: str, op: str) -> float | None:
    found = [r[key] for r in rows if (r["op"], r["case"], r["provider"]) == (op, case, provider)]
    return found[0] if found else None


def _ratio(rows: Rows, op: str, case: str, provider: str, key: str = "graph_ms") -> float | None:
    """`provider` over ours: above 1 means that the kernel needs less."""
    ours, theirs = _value(rows, case, "triton", key, op), _value(rows, case, provider, key, op)
    return None if not ours or theirs is None else theirs / ours


def _outcome(value: float | None, at_least: float) -> str:
    return NOT_MEASURED if value is None else "met" if value >= at_least else "missed"


def outcomes(rows: Rows) -> list[dict[str, Any]]:
    """Every target with its figure and outcome. Times are graph-replayed medians, bandwidth is from cold runs."""
    wanted: list[tuple[str, float | None, float]] = []
    for k in (20, 150):
        case = f"sd21 N=4096 K={k}"
        for peer in ("compile", "sdpa", "sdpa without mask"):
            value = _ratio(rows, "text_injection", case, peer)
            wanted.append((f"text_injection {case}: at least 1.5 x faster than {peer}", value, 1.5))
        share = _value(rows, case, "triton", "share_of_bandwidth", "text_injection")
        wanted.append((f"text_injection {case}: at least 60 % of the bandwidth ceiling", share, 0.6))
    for layout in ("NCHW", "NHWC"):
        case = f"{layout} K=20"
        for peer, least in (("eager", 2.0), ("compile", 1.0)):
            value = _ratio(rows, "latent_concat", case, peer)
            wanted.append((f"latent_concat {case}: at least {least:g} x the speed of {peer}", value, least))
    case = "1024 px K=150"
    wanted.append(
        (f"mask_argmax {case}: at least 3 x faster than eager", _ratio(rows, "mask_argmax", case, "eager"), 3.0)
    )
    memory = _ratio(rows, "mask_argmax", case, "eager", "peak_bytes")
    wanted.append((f"mask_argmax {case}: at most a tenth of eager's memory", memory, 10.0))
    return [{"target": text, "value": value, "outcome": _outcome(value, least)} for text, value, least in wanted]
