"""Floating-point operations, counted by PyTorch while a network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def count(call: Callable[[], Any]) -> tuple[int, Any]:
    """(operations of convolutions and matrix products, a multiply-add being two; what the call returned). Attention is taken
    apart into its products, which the counter does not know of on a CPU otherwise."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        answer = call()
    return int(counter.get_total_flops()), answer
