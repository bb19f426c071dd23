"""The kernels' arithmetic, run by Triton's interpreter on the CPU. Started by test_triton_interpreter.py, or by hand:

    TRITON_INTERPRET=1 python -m pytest tests/triton/interpreter_cases.py

bfloat16 is missing on purpose: the interpreter multiplies its bit patterns, in every release up to 3.9.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import triton
import triton.language as tl
from triton_support import Guarded, as_double, assert_close_as_eager, guarded, text_inputs

from digseg_triton import cross_attention, latent_concat, mask_argmax, text_injection, twins

DTYPES = [torch.float32, torch.float16]
TEXT_SHAPES = [  # B, K, N, C, Co, H, L
    (2, 3, 37, 64, 24, 4, 8),
    (1, 37, 20, 32, 16, 2, 5),
    (1, 1, 65, 256, 32, 8, 16),
    (1, 2, 30, 40, 20, 3, 77),
    (1, 3, 19, 320, 33, 5, 16),
    (3, 2, 1, 24, 7, 1, 1),
    (1, 2, 33, 48, 16, 2, 33),
    (1, 5, 17, 64, 16, 2, 32),
]


SPLIT_SHAPES = [  # C / H channels per head: whole, padded, grouped, single head
    (2, 3, 37, 64, 24, 4, 8),
    (1, 37, 20, 32, 16, 2, 5),
    (1, 1, 65, 256, 32, 8, 16),
    (1, 2, 30, 48, 20, 3, 77),
    (1, 3, 19, 320, 33, 4, 16),
    (2, 2, 21, 60, 16, 5, 8),
    (1, 2, 17, 40, 16, 2, 1),
]


def run_text_injection(inputs: list) -> torch.Tensor:
    b, n, o = inputs[1].shape
    out = Guarded((b, inputs[2].shape[0], n, o), inputs[1].dtype)
    text_injection.launch(*[guarded(value) for value in inputs], out.tensor)
    return out.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", TEXT_SHAPES)
def test_text_injection(shape, dtype):
    inputs = text_inputs(*shape, dtype)
    exact = twins.text_injection(*as_double(inputs))
    assert_close_as_eager(run_text_injection(inputs), twins.text_injection(*inputs), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SPLIT_SHAPES)
def test_text_injection_split(shape, dtype):
    inputs = text_inputs(*shape, dtype, split=True)
    exact = twins.text_injection(*as_double(inputs))
    assert_close_as_eager(run_text_injection(inputs), twins.text_injection(*inputs), exact)


@pytest.mark.parametrize("arch", [87, 90])
def test_text_injection_configurations(arch, monkeypatch):
    monkeypatch.setattr(text_injection, "architecture", lambda tensor: arch)
    shapes = [(1, 3, 40, 256, 64, 8, 16), (1, 2, 40, 64, 24, 8, 8), (1, 2, 20, 64, 24, 2, 77)]
    for shape, split in itertools.product(shapes, (False, True)):
        inputs = text_inputs(*shape, torch.float16, split)
        exact = twins.text_injection(*as_double(inputs))
        assert_close_as_eager(run_text_injection(inputs), twins.text_injection(*inputs), exact)


@pytest.mark.parametrize("tokens", [1, 8, 77])
def test_text_injection_all_padded_is_base(tokens):
    inputs = text_inputs(2, 3, 21, 32, 16, 2, tokens, torch.float16)
    inputs[4][1] = False
    result = run_text_injection(inputs)
    assert torch.equal(result[:, 1], inputs[1])
    assert not torch.equal(result[:, 0], inputs[1])


def test_text_injection_large_scores_do_not_overflow():
    inputs = text_inputs(1, 2, 20, 32, 16, 2, 8, torch.float32)
    inputs[2] *= 1e4
    exact = twins.text_injection(*as_double(inputs))
    assert_close_as_eager(run_text_injection(inputs), twins.text_injection(*inputs), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("h", "n", "tokens", "d"), [(3, 33, 77, 64), (2, 70, 16, 40), (1, 1, 1, 80), (2, 17, 80, 160), (1, 20, 128, 8)]
)
def test_cross_attention(h, n, tokens, d, packed, dtype):
    generator = torch.Generator().manual_seed(1)
    draw = lambda rows: torch.randn(2, rows, h, d, generator=generator).to(dtype)  # noqa: E731
    query, key, value = draw(n), draw(tokens), draw(tokens)
    if not packed:  # the same shape from the other memory layout
        query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value))
    mask = torch.rand(2, tokens, generator=generator) > 0.3
    mask[0] = tokens == 1  # a text of padding only, unless it is the single token
    inputs = [query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask]
    # The result has the layout of the query, so the guarded buffer is viewed the same way.
    memory = Guarded((2, n, h, d) if packed else (2, h, n, d), dtype)
    out = memory.tensor.transpose(1, 2) if packed else memory.tensor
    cross_attention.launch(*inputs, d**-0.5, out)
    memory.check()
    exact = twins.cross_attention(*as_double(inputs), d**-0.5)
    assert_close_as_eager(out, twins.cross_attention(*inputs, d**-0.5), exact)
    if tokens > 1:
        assert not out[0].any()


def latents(b: int, k: int, h: int, w: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    rows = [b, b * k, b * k, b * k]
    return tuple(torch.randn(r, 4, h, w, generator=generator).to(dtype) for r in rows)


def run_latent_concat(image, mask, velocity, noise, k, coefficients, factors, dtype, channels_last):
    rows, _, h, w = mask.shape
    memory = Guarded((rows, h, w, 8) if channels_last else (rows, 8, h, w), dtype)
    out = memory.tensor.permute(0, 3, 1, 2) if channels_last else memory.tensor
    following = Guarded(tuple(mask.shape), mask.dtype) if velocity is not None else None
    inputs = [None if value is None else guarded(value) for value in (image, mask, velocity, noise)]
    target = None if following is None else following.tensor
    latent_concat.launch(*inputs, k, coefficients, *factors, target, out)
    memory.check()
    return (None if following is None else following.check()), out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "k", "h", "w"), [(2, 3, 7, 9), (1, 1, 16, 16), (1, 37, 3, 5), (2, 1, 19, 17)])
def test_latent_concat_copy_is_bit_equal(b, k, h, w, dtype, channels_last):
    image, mask, _, _ = latents(b, k, h, w, dtype)
    _, out = run_latent_concat(image, mask, None, None, k, (1.0, 0.0), (1.0, 1.0), dtype, channels_last)
    assert torch.equal(out, torch.cat([image.repeat_interleave(k, 0), mask], 1))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_noise", [False, True])
def test_sampler_step(dtype, channels_last, with_noise):
    image, mask, velocity, noise = latents(2, 3, 7, 9, torch.float32)
    velocity, noise = velocity.to(dtype), noise if with_noise else None
    factors = (0.18, 0.4)
    following, out = run_latent_concat(
        image, mask, velocity, noise, 3, (0.6, -0.8), factors, torch.float16, channels_last
    )
    twin = [image, mask, velocity, noise, 3, 0.6, -0.8, *factors]
    eager = twins.sampler_step(*twin, torch.float16, channels_last)
    exact_following = 0.6 * mask.double() - 0.8 * velocity.double()
    extra = 0.0 if noise is None else factors[1] * noise.double()
    exact = torch.cat([image.double().repeat_interleave(3, 0), factors[0] * exact_following + extra], 1)
    assert_close_as_eager(following, eager[0], exact_following)
    assert_close_as_eager(out, eager[1], exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("k", "source", "size"),
    [(37, (6, 7), (24, 28)), (3, (6, 7), (25, 31)), (1, (5, 4), (5, 4)), (2, (9, 8), (3, 4)), (3, (2, 3), (70, 9))],
)
def test_mask_argmax(k, source, size, dtype):
    logits = torch.randn(2, k, *source, generator=torch.Generator().manual_seed(3)).to(dtype)
    labels, score = Guarded((2, *size), torch.int32), Guarded((2, *size), torch.float32)
    mask_argmax.launch(guarded(logits), 0.1, labels.tensor, score.tensor)
    full = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear", align_corners=False)
    exact, winner = full.max(1)
    eager = torch.nn.functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False).amax(1)
    assert_close_as_eager(score.check(), eager, exact)
    expected = torch.where(exact > 0.1, winner + 1, 0)
    top = full.topk(min(2, k), 1).values
    clear = (exact - 0.1).abs() > 1e-5  # a tie within rounding may go either way
    if k > 1:
        clear &= top[:, 0] - top[:, 1] > 1e-5
    assert clear.float().mean() > 0.95
    assert torch.equal(labels.check()[clear], expected[clear].int())


@triton.jit
def _writes_past_the_end(out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, SIZE), tl.full([SIZE], 1.0, tl.float32))


def test_guard_bands_notice_a_stray_write():
    out = Guarded((10,), torch.float32)
    _writes_past_the_end[(1,)](out.tensor, 16)
    with pytest.raises(AssertionError, match="past the end"):
        out.check()
