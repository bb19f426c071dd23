"""Cross-attention of the reference U-Net: many image queries, a text of at most 128 tokens, padding masked out.

Standard scaled dot-product attention (Vaswani et al. 2017, section 3.2.1); forward as one kernel, backward through
the PyTorch twin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, twins
from .configs import choose
from .constants import MOST_TOKENS, cross_attention_constants
from .environment import use_kernel
from .launch import PRECISION, architecture, blocks, device_guard
from .recompute import recompute

OP = "cross_attention"
WIDEST_HEAD = 256


def cross_attention(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor, scale: float) -> Tensor:
    """`softmax(scale * query @ key^T) @ value` over the real tokens of a text.

    Args:
        query: `[B, H, N, D]` float32, float16 or bfloat16; contiguous, or the transposed view of `[B, N, H, D]`.
        key, value: `[B, H, L, D]`, both in one of the same two layouts.
        token_mask: `[B, L]` bool, True for real tokens. A text without any gives zeros.
        scale: factor on the scores, usually `D ** -0.5`.

    Returns:
        `[B, H, N, D]`, dtype and memory layout of `query`. Softmax and sums are fp32.

    Raises:
        ValueError: shape, dtype, device or layout does not fit.
        KernelUnavailableError: DIGSEG_TRITON=force and the kernel cannot run.
    """
    result: Tensor = torch.ops.digseg.cross_attention(query, key, value, token_mask, scale)
    return result


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor) -> None:
    checks.check_rank(OP, "query", query, "B, H, N, D")
    checks.check_rank(OP, "key", key, "B, H, L, D")
    b, h, _, d = query.shape
    tokens = key.shape[2]
    checks.check_shape(OP, "key", key, "B, H, L, D", (b, h, tokens, d))
    checks.check_shape(OP, "value", value, "B, H, L, D", (b, h, tokens, d))
    checks.check_shape(OP, "token_mask", token_mask, "B, L", (b, tokens))
    checks.check_dtype(OP, "query", query, checks.FLOATS)
    checks.check_dtype(OP, "key", key, (query.dtype,))
    checks.check_dtype(OP, "value", value, (query.dtype,))
    checks.check_dtype(OP, "token_mask", token_mask, (torch.bool,))


def _is_packed(name: str, tensor: Tensor) -> bool:
    """True if heads lie inside a row ([B, N, H, D] in memory), False if [B, H, N, D]; ValueError for other strides."""
    packed = not tensor.is_contiguous()
    checks.require(
        not packed or tensor.transpose(1, 2).is_contiguous(),
        OP,
        f"`{name}`",
        "contiguous as [B, H, N, D] or as [B, N, H, D] transposed",
        f"strides {tensor.stride()}",
        f"call {name}.contiguous(): the kernel never copies in silence",
    )
    return packed


def _check(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor) -> None:
    tensors = {"query": query, "key": key, "value": value, "token_mask": token_mask}
    _check_shapes(**tensors)
    checks.check_device(OP, dict(tensors))
    checks.check_contiguous(OP, "token_mask", token_mask)
    for name, tensor in tensors.items():
        checks.require(tensor.numel() > 0, OP, f"`{name}`", "non-empty", tuple(tensor.shape), "pass at least one row")
        checks.check_addressable(OP, name, tensor[0].numel())
    checks.check_grid(OP, "query axis B", query.shape[0])
    checks.check_grid(OP, "query axis H", query.shape[1])
    _is_packed("query", query)
    checks.require(
        _is_packed("key", key) == _is_packed("value", value),
        OP,
        "`key` and `value`",
        "in the same layout",
        f"strides {key.stride()} and {value.stride()}",
        "make both contiguous",
    )
    tokens = key.shape[2]
    checks.require(tokens <= MOST_TOKENS, OP, "token count L", f"at most {MOST_TOKENS}", tokens, "cut the prompt")


def _unsupported(query: Tensor) -> str | None:
    return f"head width {query.shape[-1]} is above {WIDEST_HEAD}" if query.shape[-1] > WIDEST_HEAD else None


def launch(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor, scale: float, out: Tensor) -> None:
    """Start the kernel; `out` has the layout of `query`. Arguments are taken as checked."""
    from .cross_attention_kernel import cross_attention_kernel

    (b, h, n, d), tokens = query.shape, key.shape[2]
    config = choose(OP, architecture(query), bytes=query.element_size(), width=d, tokens=tokens)
    with device_guard(query):
        cross_attention_kernel[(blocks(n, config.block), h, b)](
            query,
            key,
            value,
            token_mask,
            n,
            out,
            **cross_attention_constants(h, tokens, d, config),
            SCALE=scale,
            Q_PACKED=_is_packed("query", query),
            KV_PACKED=_is_packed("key", key),
            PRECISION=PRECISION,
            num_warps=config.warps,
            num_stages=config.stages,
        )


@torch.library.custom_op("digseg::cross_attention", mutates_args=())
def _op(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor, scale: float) -> Tensor:
    _check(query, key, value, token_mask)
    out = torch.empty_like(query)
    if use_kernel(OP, query.device, _unsupported(query)):
        launch(query, key, value, token_mask, scale, out)
        return out
    return out.copy_(twins.cross_attention(query, key, value, token_mask, scale))


@_op.register_fake
def _fake(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor, scale: float) -> Tensor:
    _check_shapes(query, key, value, token_mask)
    return torch.empty_like(query)


_backward, _setup = recompute(twins.cross_attention)
_op.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.digseg.cross_attention)
def _flops(query: tuple[int, ...], key: tuple[int, ...], *_: object, **__: object) -> int:
    """Multiply and add counted as two, scores and values; padded columns are not counted."""
    b, h, n, d = query
    return 4 * b * h * n * key[2] * d
