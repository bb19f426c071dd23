"""Backward of an op by running its PyTorch twin again under autograd; only the inputs are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def recompute(twin: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """(backward, setup_context) for `torch.library.CustomOpDef.register_autograd`."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        needed = ctx.needs_input_grad
        arguments = list(ctx.constants)
        with torch.enable_grad():
            for i, is_tensor in enumerate(ctx.is_tensor):
                if is_tensor:
                    arguments[i] = next(saved).detach().requires_grad_(needed[i])
            outputs = twin(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [arguments[i] for i, need in enumerate(needed) if need]
        gradients = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
        return tuple(next(gradients) if need else None for need in needed)

    return backward, setup_context
