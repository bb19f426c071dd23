"""Floating-point operations, counted by PyTorch while a network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def count(call: Callable[[], Any]) -> tuple[int, Any]:
    """(operations of convolutions and matrix products, a multiply-add being two; what the call returned)."""
    found, answer = by_operator(call)
    return sum(found.values()), answer


def by_operator(call: Callable[[], Any]) -> tuple[dict[str, int], Any]:
    """(operations by PyTorch's operator, such as `aten.convolution`; what the call returned). Attention is taken apart into its
    products, which the counter does not know of on a CPU otherwise."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        answer = call()
    return {str(operator): int(found) for operator, found in counter.get_flop_counts()["Global"].items()}, answer
