"""What the kernel benchmark runs: inputs, our op, the peers it is compared with, and the work it has to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from digseg_triton import ops, twins


@dataclass
class Case:
    """One op at one size and dtype. All callables take no arguments and return a tensor or a tuple."""

    op: str
    label: str
    dtype: torch.dtype
    sizes: dict[str, int]
    ours: Callable[[], Any]
    eager: Callable[[], Any]
    exact: Callable[[], Tensor]  # fp64, the first result
    peers: dict[str, Callable[[], Any]] = field(default_factory=dict)
    moved: int = 0  # bytes that must be read and written at least once
    flops: int = 0


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def text_injection_case(
    label: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    k: int,
    n: int,
    c: int,
    o: int,
    h: int,
    tokens: int,
    split: bool = True,
) -> Case:
    """Split or absorbed keys against SDPA with the same projections: queries once per image, expanded over K."""
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, device=device, generator=generator)  # noqa: E731
    features, wq, reduce = draw(1, n, c), draw(c, c) * c**-0.5, draw(c, o) * c**-0.5
    wo = draw(c, o) * (0.3 * c**-0.5)  # output projection, gate and reduction in one
    text_k, text_v = draw(k, tokens, h, c // h), draw(k, tokens, h, c // h)
    mask = torch.arange(tokens, device=device)[None] < torch.arange(k, device=device)[:, None] % tokens + 1

    scale = (c // h) ** -0.5
    if split:
        keys = text_k.permute(0, 2, 3, 1) * scale  # [K, H, C/H, L]
    else:
        keys = torch.einsum("chd,klhd->khcl", wq.unflatten(1, (h, -1)), text_k) * scale  # [K, H, C, L]
    values = torch.einsum("klhd,hdo->khlo", text_v, wo.unflatten(0, (h, -1)))
    query = features @ wq  # once per image, not timed for either side
    inputs = [value.contiguous().to(dtype) for value in (query if split else features, features @ reduce, keys, values)]
    inputs.append(mask)
    query, wo = query.to(dtype), wo.to(dtype)
    text_k, text_v = (value.to(dtype).transpose(1, 2).contiguous() for value in (text_k, text_v))  # [K, H, L, D]

    def sdpa(attn_mask: Tensor | None = mask[:, None, None]) -> Tensor:
        expanded = query.unflatten(-1, (h, -1)).transpose(1, 2).expand(k, h, n, c // h)
        attended = F.scaled_dot_product_attention(expanded, text_k, text_v, attn_mask=attn_mask)  # [K, H, N, D]
        return (inputs[1] + attended.transpose(1, 2).flatten(2) @ wo)[None]  # [1, K, N, Co]

    return Case(
        "text_injection", label, dtype, {"K": k, "N": n, "C": c, "Co": o, "H": h, "L": tokens},
        ours=lambda: ops.text_injection(*inputs),
        eager=lambda: twins.text_injection(*inputs),
        exact=lambda: twins.text_injection(*map(_double, inputs)),
        peers={"sdpa": sdpa, "sdpa without mask": lambda: sdpa(None)},
        moved=_bytes(*inputs) + k * n * o * inputs[1].element_size(),
        flops=2 * k * n * h * tokens * (keys.shape[2] + o),
    )  # fmt: skip


def cross_attention_case(
    label: str, dtype: torch.dtype, device: torch.device, *, b: int, h: int, n: int, tokens: int, d: int
) -> Case:
    """The reference's cross-attention core, heads inside rows, 77 tokens of which some are padding."""
    generator = torch.Generator(device).manual_seed(1)
    draw = lambda rows: torch.randn(b, rows, h, d, device=device, generator=generator).to(dtype).transpose(1, 2)  # noqa: E731
    query, key, value = draw(n), draw(tokens), draw(tokens)
    mask = torch.arange(tokens, device=device)[None] < torch.arange(b, device=device)[:, None] % tokens + 1
    inputs, scale = [query, key, value, mask], d**-0.5
    attention = F.scaled_dot_product_attention
    return Case(
        "cross_attention", label, dtype, {"B": b, "H": h, "N": n, "L": tokens, "D": d},
        ours=lambda: ops.cross_attention(*inputs, scale),
        eager=lambda: twins.cross_attention(*inputs, scale),
        exact=lambda: twins.cross_attention(*map(_double, inputs), scale),
        peers={
            "sdpa": lambda: attention(query, key, value, attn_mask=mask[:, None, None], scale=scale),
            "sdpa without mask": lambda: attention(query, key, value, scale=scale),
        },
        moved=_bytes(*inputs, query),
        flops=4 * b * h * n * tokens * d,
    )  # fmt: skip


def latent_concat_case(
    label: str, dtype: torch.dtype, device: torch.device, *, k: int, side: int, channels_last: bool
) -> Case:
    """A whole sampler step's glue: DDIM update, scale, noise, repeat, cat, cast, layout; fp32 latents."""
    generator = torch.Generator(device).manual_seed(2)
    draw = lambda rows: torch.randn(rows, 4, side, side, device=device, generator=generator)  # noqa: E731
    image, mask, velocity, noise = draw(1), draw(k), draw(k).to(dtype), draw(k)
    numbers = (0.6, -0.8, 0.9, 0.1)
    a, b, scale, noise_scale = numbers
    step = {"prompts": k, "mask_coefficient": a, "v_coefficient": b, "scale": scale, "noise_scale": noise_scale}
    out = torch.empty(k, 8, side, side, dtype=dtype, device=device)
    out = out.contiguous(memory_format=torch.channels_last) if channels_last else out
    following = torch.empty_like(mask)

    def exact() -> Tensor:
        stepped = scale * (a * mask.double() + b * velocity.double()) + noise_scale * noise.double()
        return torch.cat([image.double().expand(k, -1, -1, -1), stepped], 1)

    return Case(
        "latent_concat", label, dtype, {"K": k, "h": side, "w": side},
        ours=lambda: ops.sampler_step(image, mask, velocity, noise=noise, **step, mask_out=following, out=out)[1],
        eager=lambda: twins.sampler_step(image, mask, velocity, noise, k, *numbers, dtype, channels_last)[1],
        exact=exact,
        moved=_bytes(image, mask, velocity, noise, following, out),
    )  # fmt: skip


def mask_argmax_case(label: str, dtype: torch.dtype, device: torch.device, *, k: int, source: int, size: int) -> Case:
    """Label map at full size; eager upsamples everything and takes the maximum."""
    generator = torch.Generator(device).manual_seed(3)
    logits = torch.randn(1, k, source, source, device=device, generator=generator).to(dtype)

    def full(values: Tensor) -> tuple[Tensor, Tensor]:
        best, winner = F.interpolate(values, (size, size), mode="bilinear", align_corners=False).max(1)
        return best, torch.where(best > 0, winner + 1, 0).int()

    return Case(
        "mask_argmax", label, dtype, {"K": k, "h": source, "H": size},
        ours=lambda: ops.mask_argmax(logits, (size, size))[1],
        eager=lambda: full(logits.float())[0],
        exact=lambda: full(logits.double())[0],
        peers={"twin": lambda: twins.mask_argmax(logits, size, size, 0.0)[1]},
        moved=_bytes(logits) + 8 * size * size,
    )  # fmt: skip


HALF = torch.float16


def timed_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    """Sizes of the sd21 student, the bundled model and the reference, in fp16; `tiny` shrinks all but the heads."""
    less = 64 if tiny else 1
    few = lambda k: min(k, 3) if tiny else k  # noqa: E731
    sd21 = {"c": 256, "o": 64, "h": 8, "tokens": 16}
    for n, counts in ((4096, (1, 20, 150)), (1024, (20, 150)), (256, (20,))):
        for k in counts:
            yield text_injection_case(f"sd21 N={n} K={k}", HALF, device, k=few(k), n=max(7, n // less), **sd21)
    yield text_injection_case("sd21 77 tokens", HALF, device, k=few(20), n=4096 // less, **sd21 | {"tokens": 77})
    for k in (20, 150):
        absorbed = sd21 | {"split": False}
        yield text_injection_case(f"absorbed N=4096 K={k}", HALF, device, k=few(k), n=max(7, 4096 // less), **absorbed)
    yield text_injection_case("tiny N=1024 K=150", HALF, device, k=few(150), n=1024 // less, c=64, o=24, h=4, tokens=8)
    for n, h in ((4096, 5), (1024, 10), (256, 20)):
        yield cross_attention_case(f"N={n} C={64 * h}", HALF, device, b=few(20), h=h, n=n // less, tokens=77, d=64)
    for channels_last in (False, True):
        for k in (1, 20, 150):
            name = f"{'NHWC' if channels_last else 'NCHW'} K={k}"
            yield latent_concat_case(name, HALF, device, k=few(k), side=8 if tiny else 64, channels_last=channels_last)
    for k in (20, 150):
        size = 32 if tiny else 1024
        yield mask_argmax_case(f"1024 px K={k}", torch.float32, device, k=few(k), source=size // 4, size=size)


def checked_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    """Large and odd shapes in every dtype, for the error against fp64."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        less = 16 if tiny else 1
        shapes = [(4096, 20, 16, True), (1023, 37, 77, True), (2304, 3, 32, True), (577, 1, 1, True)]
        for n, k, tokens, split in [*shapes, (4096, 20, 16, False), (1023, 3, 77, False)]:
            sizes = {"k": min(k, 3) if tiny else k, "n": n // less, "c": 256, "o": 48, "h": 8, "tokens": tokens}
            name = f"{'split' if split else 'absorbed'} N={n} K={k} L={tokens}"
            yield text_injection_case(name, dtype, device, **sizes, split=split)
        yield text_injection_case("wide", dtype, device, k=3, n=1000 // less, c=640, o=64, h=8, tokens=16)
        for d in (40, 64, 80, 160):
            yield cross_attention_case(f"D={d}", dtype, device, b=3, h=8, n=2305 // less, tokens=77, d=d)
        for channels_last in (False, True):
            yield latent_concat_case("odd", dtype, device, k=5, side=97 // less + 1, channels_last=channels_last)
        yield mask_argmax_case("odd", dtype, device, k=150 // less, source=200 // less, size=1001 // less)
