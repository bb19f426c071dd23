"""Muon: momentum whose update is orthogonalised, for every weight matrix and convolution; AdamW for the rest.

Jordan et al. 2024 ("Muon: An optimizer for hidden layers in neural networks"), with the update scaled to AdamW's usual
size as in Liu et al. 2025 (arXiv 2502.16982, section 2.2). PyTorch's own `torch.optim.Muon` takes two-dimensional
weights only and computes in bfloat16, which many CPUs emulate slowly; this one flattens convolutions and computes in
the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

ITERATION = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic Newton-Schulz step (Jordan et al.)
ROUNDS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix [m, n] with all singular values about 1 (0.7..1.2), by Newton-Schulz iteration."""
    a, b, c = ITERATION
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(Optimizer):
    """Muon on weights of two or more axes, AdamW on gains, biases and scalars.

    lr: step of both (weights' updates have a root mean square of 0.2 * lr, as AdamW's); betas: AdamW's; momentum: Muon's.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    (self._matrix if weight.ndim >= 2 else self._vector)(weight, group)
        return loss

    def _matrix(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
        nesterov = weight.grad.lerp(state["momentum"], group["momentum"])
        update = orthogonalise(nesterov.flatten(1))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update.view_as(weight), alpha=-0.2 * group["lr"] * max(update.shape) ** 0.5)

    def _vector(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (slow, square) = self.state[weight], group["betas"]
        if not state:
            state.update(step=0, first=torch.zeros_like(weight), second=torch.zeros_like(weight))
        state["step"] += 1
        state["first"].lerp_(weight.grad, 1 - slow)
        state["second"].lerp_(weight.grad.square(), 1 - square)
        first = state["first"] / (1 - slow ** state["step"])
        second = state["second"] / (1 - square ** state["step"])
        weight.addcdiv_(first, second.sqrt() + 1e-8, value=-group["lr"])
