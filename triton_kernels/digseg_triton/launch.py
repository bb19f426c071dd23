"""What every launch needs: the tensor's device made current, its architecture and its number of processors."""

from __future__ import annotations

import contextlib
from functools import cache

import torch
from torch import Tensor

PRECISION = "ieee"  # fp32 products are exact fp32, as eager's are by default; no effect on fp16 and bf16


def device_guard(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's. Nothing to do under the interpreter."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@cache
def _properties(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.major * 10 + properties.minor, properties.multi_processor_count


def architecture(tensor: Tensor) -> int:
    """87 for an Orin, 90 for an H100; 80 stands in under the interpreter."""
    return _properties(tensor.get_device())[0] if tensor.is_cuda else 80


def processors(tensor: Tensor) -> int:
    """Streaming multiprocessors of the tensor's device."""
    return _properties(tensor.get_device())[1] if tensor.is_cuda else 1


def blocks(count: int, block: int) -> int:
    """Programs needed to cover `count`."""
    return -(-count // block)
