"""Shared by the kernel tests: seeded inputs, the error rule, and buffers with guard bands."""

from __future__ import annotations

import torch
from torch import Tensor

GUARD = 1024


def text_inputs(
    b: int, k: int, n: int, c: int, o: int, h: int, tokens: int, dtype: torch.dtype, split: bool = False
) -> list[Tensor]:
    """features, base, keys, values, token_mask; scores of order one, prompts of every length from one token up."""
    depth = c // h if split else c
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    length = torch.arange(k) % tokens + 1
    mask = torch.arange(tokens)[None] < length[:, None]
    floats = [draw(b, n, c), draw(b, n, o), draw(k, h, depth, tokens) * depth**-0.5, draw(k, h, tokens, o)]
    return [value.to(dtype) for value in floats] + [mask]


def as_double(values: list) -> list:
    """Floating tensors in float64, everything else as it is."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def assert_close_as_eager(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Error to fp64 at most twice that of eager PyTorch in the same dtype, and not far off in the mean either.

    Half a unit in the last place of the largest value is allowed on top, for cases where eager happens to be exact.
    """
    eps = torch.finfo(got.dtype).eps
    error, allowed = (got.double() - exact).abs(), (eager.double() - exact).abs()
    assert error.max() <= 2 * allowed.max() + eps / 2 * exact.abs().max(), (error.max().item(), allowed.max().item())
    rms = lambda values: values.pow(2).mean().sqrt()  # noqa: E731
    assert rms(error) <= 2 * rms(allowed) + eps / 8 * rms(exact), (rms(error).item(), rms(allowed).item())


class Guarded:
    """A tensor inside a larger buffer of canaries: NaN for floats, -7777 for integers."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, values: Tensor | None = None) -> None:
        self.canary = float("nan") if dtype.is_floating_point else -7777
        count = torch.Size(shape).numel()
        self.buffer = torch.full((count + 2 * GUARD,), self.canary, dtype=dtype)
        self.tensor = self.buffer[GUARD : GUARD + count].view(shape)
        if values is not None:
            self.tensor.copy_(values)

    def _is_canary(self, part: Tensor) -> Tensor:
        return part.isnan() if part.is_floating_point() else part == self.canary

    def check(self) -> Tensor:
        """The tensor, after making sure that all of it and nothing around it was written."""
        count = self.tensor.numel()
        untouched = self._is_canary(self.buffer)
        assert untouched[:GUARD].all(), "written before the start"
        assert untouched[GUARD + count :].all(), "written past the end"
        assert not untouched[GUARD : GUARD + count].any(), "not everything was written, or garbage was read"
        return self.tensor


def guarded(values: Tensor) -> Tensor:
    """A copy of an input between NaN bands: a stray read shows up in the result. Masks are left as they are."""
    return Guarded(tuple(values.shape), values.dtype, values).tensor if values.is_floating_point() else values
