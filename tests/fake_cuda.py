"""CUDA without a GPU: fake tensors on `cuda` carry shapes, types and devices and refuse to meet tensors of another device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, every tensor that is made is fake, and the kernels believe in a GPU of capability 9.0.

    Modules made before stay real until they are moved. Schedules stay real numbers: they are cached from before."""
    from digseg_triton import environment

    monkeypatch.setattr(environment, "_has_triton", lambda: True)
    monkeypatch.setattr(environment, "_capability", lambda index: (9, 0))
    plain = copy.deepcopy

    def deepcopy(value: Any, memo: Any = None) -> Any:
        with unset_fake_temporarily():  # real weights are copied for real
            return plain(value, memo)

    monkeypatch.setattr(copy, "deepcopy", deepcopy)
    monkeypatch.setattr(torch.nn.Module, "_apply", _apply)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _ByName():
        yield


def _apply(module: Any, function: Any, recurse: bool = True) -> Any:
    """`Module._apply` by new parameters: PyTorch's own swaps tensors, which fakes do not allow twice."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(function(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = function(value)
    return module


class _ByName(TorchFunctionMode):
    """What needs a CUDA build of PyTorch even for fakes, by the operators it stands for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        instead = _OPERATORS.get(function)
        if instead is not None and (args[0].device.type == "cuda" or function is torch.Tensor.to):
            return instead(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _contiguous(tensor: Any, memory_format: Any = torch.contiguous_format) -> Any:
    done = tensor.is_contiguous(memory_format=memory_format)
    return tensor if done else torch.ops.aten.clone(tensor, memory_format=memory_format)


def _index(tensor: Any, index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        missing = tensor.dim() - sum(part is not None for part in parts) + 1
        parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
    axis = 0
    for part in parts:
        if isinstance(part, int):
            tensor = tensor.select(axis, part)
            continue
        if part is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, axis, part.start, part.stop, part.step or 1)
        else:
            tensor = torch.ops.aten.index.Tensor(tensor, [None] * axis + [part])
        axis += 1
    return tensor


def _to(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    given = (*args, *kwargs.values())
    dtype = next((one for one in given if isinstance(one, torch.dtype)), tensor.dtype)
    where = next((torch.device(one) for one in given if isinstance(one, torch.device | str)), tensor.device)
    if (dtype, where) == (tensor.dtype, tensor.device):
        return tensor
    return torch.ops.aten._to_copy(tensor, dtype=dtype, device=where)


_OPERATORS = {
    torch.Tensor.__getitem__: _index,
    torch.Tensor.__invert__: lambda tensor: torch.ops.aten.bitwise_not(tensor),
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.to: _to,
}


def strict_slots(module: torch.nn.Module) -> list[str]:
    """Have every fused slot check its arguments as a launch does (fake kernels check shapes alone); names of the calls."""
    from digseg_triton import cross_attention, latent_concat, text_injection

    checks = {
        "text_injection": text_injection._check,
        "cross_attention": lambda q, k, v, mask, scale: cross_attention._check(q, k, v, mask),
        "latent_concat": lambda z, m, prompts: latent_concat._check(z, m, {}, prompts),
        "sampler_step": lambda z, m, v, prompts, **_: latent_concat._check(z, m, {"velocity": v}, prompts),
    }
    calls: list[str] = []

    def checked(name: str, slot: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            checks[name](*args, **kwargs)
            calls.append(name)
            return slot(*args, **kwargs)

        return call

    for part in module.modules():
        slots = getattr(part, "kernel_slots", {})
        for name in list(slots):
            slots[name] = checked(name, slots[name])
    return calls
