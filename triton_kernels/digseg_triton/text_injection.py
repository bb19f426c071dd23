"""Text-injection attention: K prompts answered from one set of image features.

`out[b,k,n] = base[b,n] + sum_h softmax_L(features[b,n] @ keys[k,h]) @ values[k,h]`. Weight absorption as in multi-head
latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): projections are multiplied into the text side once per
prompt, together with softmax scale, gate and any linear channel reduction. Absorbing the output side always pays;
absorbing the query side costs H times the operations of the scores, because projected queries are the same for all
prompts. So `keys` has two forms, told apart by its third axis: absorbed (`D = C`) and split (`D = C / H`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, twins
from .configs import choose
from .constants import MOST_TOKENS, prompt_span, text_injection_constants
from .environment import use_kernel
from .launch import PRECISION, architecture, blocks, device_guard, processors
from .recompute import recompute

OP = "text_injection"
WIDEST, WIDEST_OUT = 4096, 256


def text_injection(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> Tensor:
    """Attend from shared image features to the tokens of K prompts and add the result to `base`.

    Args:
        features: `[B, N, C]` float32, float16 or bfloat16; the same for all prompts. Image features if the keys are
            absorbed, projected queries with the heads side by side if they are split.
        base: `[B, N, Co]`, what every prompt starts from (the features, or a linear reduction of them).
        keys: `[K, H, D, L]` with the softmax scale folded in: per head `Wq K^T` (D = C), or `K^T` alone (D = C / H).
        values: `[K, H, L, Co]`, per head `V Wo` with gate and reduction folded in.
        token_mask: `[K, L]` bool, True for real tokens. A prompt without any returns `base` exactly.

    Returns:
        `[B, K, N, Co]` in the dtype of `features`. Softmax and sums are fp32.

    Raises:
        ValueError: shape, dtype, device or contiguity does not fit.
        KernelUnavailableError: DIGSEG_TRITON=force and the kernel cannot run.
    """
    result: Tensor = torch.ops.digseg.text_injection(features, base, keys, values, token_mask)
    return result


def _check_shapes(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> None:
    ranks = {"features": (features, "B, N, C"), "base": (base, "B, N, Co"), "keys": (keys, "K, H, D, L")}
    for name, (tensor, axes) in ranks.items():
        checks.check_rank(OP, name, tensor, axes)
    b, n, c = features.shape
    k, h, depth, tokens = keys.shape
    o = base.shape[-1]
    checks.require(
        depth == c or depth * h == c,
        OP,
        "`keys` axis D",
        f"C = {c} (absorbed) or C / H (split)",
        f"{depth} for H = {h}",
        "fold the keys for these features",
    )
    checks.check_shape(OP, "base", base, "B, N, Co", (b, n, o))
    checks.check_shape(OP, "values", values, "K, H, L, Co", (k, h, tokens, o))
    checks.check_shape(OP, "token_mask", token_mask, "K, L", (k, tokens))
    checks.check_dtype(OP, "features", features, checks.FLOATS)
    for name, tensor in {"base": base, "keys": keys, "values": values}.items():
        checks.check_dtype(OP, name, tensor, (features.dtype,))
    checks.check_dtype(OP, "token_mask", token_mask, (torch.bool,))


def _check(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> None:
    tensors = {"features": features, "base": base, "keys": keys, "values": values, "token_mask": token_mask}
    _check_shapes(**tensors)
    checks.check_device(OP, dict(tensors))
    for name, tensor in tensors.items():
        checks.check_contiguous(OP, name, tensor)
        checks.require(tensor.numel() > 0, OP, f"`{name}`", "non-empty", tuple(tensor.shape), "pass at least one row")
    tokens = keys.shape[-1]
    checks.require(tokens <= MOST_TOKENS, OP, "token count L", f"at most {MOST_TOKENS}", tokens, "cut the prompt")
    checks.check_grid(OP, "features axis B", features.shape[0])
    checks.check_grid(OP, "keys axis K", keys.shape[0])
    checks.check_addressable(OP, "keys", keys.numel())
    checks.check_addressable(OP, "values", values.numel())
    checks.check_addressable(OP, "features", features[0].numel())
    checks.check_addressable(OP, "base", base[0].numel())


def _unsupported(features: Tensor, base: Tensor) -> str | None:
    if features.shape[-1] > WIDEST:
        return f"feature width {features.shape[-1]} is above {WIDEST}"
    return f"output width {base.shape[-1]} is above {WIDEST_OUT}" if base.shape[-1] > WIDEST_OUT else None


def launch(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor, out: Tensor) -> None:
    """Start the kernel; `out` [B, K, N, Co] is contiguous. Arguments are taken as checked."""
    from .text_injection_kernel import text_injection_kernel

    (b, n, c), (k, h, depth, tokens), o = features.shape, keys.shape, base.shape[-1]
    table = OP if depth == c else f"{OP}_split"
    config = choose(table, architecture(features), bytes=features.element_size(), width=c, tokens=tokens)
    tiles = blocks(n, config.block)
    span = prompt_span(tiles * b, k, processors(features))
    with device_guard(features):
        text_injection_kernel[(tiles, blocks(k, span), b)](
            features,
            base,
            keys,
            values,
            token_mask,
            n,
            k,
            span,
            out,
            **text_injection_constants(c, o, h, depth, tokens, config),
            PRECISION=PRECISION,
            num_warps=config.warps,
            num_stages=config.stages,
        )


@torch.library.custom_op("digseg::text_injection", mutates_args=())
def _op(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> Tensor:
    _check(features, base, keys, values, token_mask)
    if not use_kernel(OP, features.device, _unsupported(features, base)):
        return twins.text_injection(features, base, keys, values, token_mask).contiguous()
    out = _fake(features, base, keys, values, token_mask)
    launch(features, base, keys, values, token_mask, out)
    return out


@_op.register_fake
def _fake(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> Tensor:
    _check_shapes(features, base, keys, values, token_mask)
    b, n, o = base.shape
    return base.new_empty((b, keys.shape[0], n, o))


_backward, _setup = recompute(twins.text_injection)
_op.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.digseg.text_injection)
def _flops(features: tuple[int, ...], base: tuple[int, ...], keys: tuple[int, ...], *_: object, **__: object) -> int:
    """Multiply and add counted as two, both products of every prompt; padded columns are not counted."""
    (k, h, depth, tokens), (b, n) = keys, features[:2]
    return 2 * b * k * n * h * tokens * (depth + base[-1])
