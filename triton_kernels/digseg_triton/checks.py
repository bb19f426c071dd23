"""Argument checks shared by the ops. Every message says what, expected, got, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
GRID_LIMIT = 65535
INDEX_LIMIT = 2**31  # elements addressed with 32-bit offsets


def require(condition: bool, op: str, what: str, expected: object, got: object, hint: str) -> None:
    """Raise ValueError with the four parts of a message unless `condition` holds."""
    if not condition:
        raise ValueError(f"{op}: {what} must be {expected}, got {got}; {hint}")


def check_rank(op: str, name: str, tensor: Tensor, axes: str) -> None:
    """`axes` is written like "B, N, C"; only the number of axes is checked."""
    require(
        tensor.dim() == len(axes.split(",")),
        op,
        f"`{name}`",
        f"a tensor [{axes}]",
        f"shape {tuple(tensor.shape)}",
        "add or remove axes to match",
    )


def check_shape(op: str, name: str, tensor: Tensor, axes: str, expected: Sequence[int]) -> None:
    """The exact shape, as told by the other arguments."""
    require(
        tuple(tensor.shape) == tuple(expected),
        op,
        f"`{name}` [{axes}]",
        f"of shape {tuple(expected)}",
        f"{tuple(tensor.shape)}",
        "its axes must agree with the other arguments",
    )


def check_dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
    require(tensor.dtype in allowed, op, f"`{name}`", names, str(tensor.dtype), f"convert it: {name}.to(...)")


def check_contiguous(op: str, name: str, tensor: Tensor) -> None:
    require(
        tensor.is_contiguous(),
        op,
        f"`{name}`",
        "contiguous",
        f"strides {tuple(tensor.stride())}",
        f"call {name}.contiguous(): the kernel never copies in silence",
    )


def check_device(op: str, tensors: dict[str, Tensor | None]) -> None:
    """All tensors on one device."""
    present = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(present.values()))
    for name, device in present.items():
        require(device == first, op, f"`{name}`", f"on {first}", f"{device}", "move all arguments to one device")


def check_grid(op: str, name: str, count: int) -> None:
    """A grid axis other than the first has at most 65535 programs."""
    require(count <= GRID_LIMIT, op, f"`{name}`", f"at most {GRID_LIMIT} entries", count, "split the call")


def check_addressable(op: str, name: str, count: int) -> None:
    """One slice addressed with 32-bit offsets stays below 2**31 elements."""
    require(count < INDEX_LIMIT, op, f"one slice of `{name}`", "below 2**31 elements", count, "split the call")
