"""The registered ops on the CPU: opcheck, compile, export, gradients, FLOPs, and the twins against plain formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from triton_support import as_double, text_inputs

from digseg_triton import ops, twins

SHAPE = (2, 3, 10, 12, 5, 2, 7)  # B, K, N, C, Co, H, L: all different


def attention_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    draw = lambda rows: torch.randn(2, rows, 3, 8, generator=generator).to(dtype).transpose(1, 2)  # noqa: E731
    mask = torch.tensor([[True] * 5 + [False] * 2, [False] * 7])
    return [draw(10), draw(7), draw(7), mask, 0.3]


def latents(k=3):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(rows, 4, 5, 6, generator=generator) for rows in (2, 2 * k, 2 * k, 2 * k)]


def op_arguments():
    image, mask, velocity, noise = latents()
    grads = [image.clone().requires_grad_(), mask.clone().requires_grad_(), velocity.clone().requires_grad_()]
    text = text_inputs(*SHAPE, torch.float32)
    attention = attention_inputs()
    options = (0.5, 0.2, torch.float32, True)
    buffers = torch.empty_like(mask), torch.empty(6, 8, 5, 6)
    split = text_inputs(2, 3, 10, 12, 5, 2, 7, torch.float32, split=True)
    return {
        "text_injection split": [value.requires_grad_() for value in split[:4]] + split[4:],
        "text_injection": [value.requires_grad_() for value in text[:4]] + text[4:],
        "cross_attention": [value.requires_grad_() for value in attention[:3]] + attention[3:],
        "latent_concat": [grads[0], grads[1], noise, 3, *options],
        "latent_concat_out": [image, mask, noise, 3, 0.5, 0.2, buffers[1]],
        "sampler_step": [*grads, None, 3, 0.6, 0.8, *options],
        "sampler_step_out": [image, mask, velocity, noise, 3, 0.6, 0.8, 0.5, 0.2, *buffers],
        "mask_argmax": [torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(6)), 11, 13, 0.0],
    }


@pytest.mark.parametrize("name", sorted(op_arguments()))
@pytest.mark.slow
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.digseg, name.split()[0]).default, op_arguments()[name])


@pytest.mark.parametrize(
    "name", ["text_injection", "text_injection split", "cross_attention", "latent_concat", "sampler_step"]
)
def test_gradients_are_those_of_the_twin(name):
    mine, theirs = op_arguments()[name], op_arguments()[name]
    results = []
    op = name.split()[0]
    for function, arguments in ((getattr(torch.ops.digseg, op), mine), (getattr(twins, op), theirs)):
        outputs = function(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum() for out in outputs).backward()
        results.append([a.grad for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad])
    assert len(results[0]) >= 2
    for got, want in zip(*results):
        assert got.abs().sum() > 0
        torch.testing.assert_close(got, want)


def all_ops(features, base, keys, values, token_mask, image, mask, velocity, logits):
    """Every public function once, as one graph."""
    injected = ops.text_injection(features * 2, base, keys, values, token_mask)
    query = injected.transpose(1, 2).contiguous().transpose(1, 2)
    attended = ops.cross_attention(query, query, query, token_mask.new_ones(2, query.shape[2]), 0.5)
    both = ops.latent_concat(image, mask, prompts=3, channels_last=True)
    following, step = ops.sampler_step(image, mask, velocity, prompts=3, mask_coefficient=0.6, v_coefficient=0.8)
    ops.sampler_step(
        image, mask, velocity, prompts=3, mask_coefficient=0.6, v_coefficient=0.8,
        mask_out=torch.empty_like(mask), out=both,
    )  # fmt: skip
    labels, score = ops.mask_argmax(logits, (11, 13), 0.1)
    return injected + 1, attended, both, following, step + both, labels + 1, score


def graph_inputs():
    image, mask, velocity, _ = latents()
    return (*text_inputs(*SHAPE, torch.float32), image, mask, velocity, op_arguments()["mask_argmax"][0])


@pytest.mark.slow
def test_compile_without_graph_breaks():
    want = all_ops(*graph_inputs())
    got = torch.compile(all_ops, fullgraph=True)(*graph_inputs())
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


class _AllOps(torch.nn.Module):
    def forward(self, *inputs):
        return all_ops(*inputs)


class _TextAndLabels(torch.nn.Module):
    def forward(self, features, base, keys, values, token_mask):
        text = ops.text_injection(features, base, keys, values, token_mask)  # [B, K, N, Co]
        return ops.mask_argmax(text.contiguous(), (20, 10))


def test_export_keeps_one_node_per_op():
    exported = torch.export.export(_AllOps(), graph_inputs())
    called = [str(node.target) for node in exported.graph.nodes if "digseg" in str(node.target)]
    assert called.count("digseg.text_injection.default") == 1
    assert {"digseg.cross_attention.default", "digseg.mask_argmax.default"} <= set(called)
    for a, b in zip(exported.module()(*graph_inputs()), all_ops(*graph_inputs())):
        torch.testing.assert_close(a, b)


def test_export_with_a_free_number_of_prompts():
    k = torch.export.Dim("k", min=2, max=150)
    n = torch.export.Dim("n", min=2, max=9216)
    axes = ({1: n}, {1: n}, {0: k}, {0: k}, {0: k})
    inputs = tuple(text_inputs(*SHAPE, torch.float32))
    exported = torch.export.export(_TextAndLabels(), inputs, dynamic_shapes={"features": axes[0], "base": axes[1],
                                   "keys": axes[2], "values": axes[3], "token_mask": axes[4]})  # fmt: skip
    other = tuple(text_inputs(2, 5, 21, 12, 5, 2, 7, torch.float32))
    for a, b in zip(exported.module()(*other), _TextAndLabels()(*other)):
        torch.testing.assert_close(a, b)


def test_decompositions_leave_only_standard_ops():
    inputs = tuple(text_inputs(*SHAPE, torch.float32))
    exported = torch.export.export(_TextAndLabels(), inputs).run_decompositions(ops.decompositions())
    assert "digseg" not in str(exported.graph)
    for a, b in zip(exported.module()(*inputs), _TextAndLabels()(*inputs)):
        torch.testing.assert_close(a, b)


def test_flops_are_counted():
    b, k, n, c, o, h, tokens = SHAPE
    with FlopCounterMode(display=False) as counter:
        ops.text_injection(*text_inputs(*SHAPE, torch.float32))
    assert counter.get_total_flops() == 2 * b * k * n * h * tokens * (c + o)
    with FlopCounterMode(display=False) as counter:
        ops.text_injection(*text_inputs(*SHAPE, torch.float32, split=True))
    assert counter.get_total_flops() == 2 * b * k * n * h * tokens * (c // h + o)
    with FlopCounterMode(display=False) as counter:
        ops.cross_attention(*attention_inputs())
    assert counter.get_total_flops() == 4 * 2 * 3 * 10 * 7 * 8


def test_both_forms_of_text_injection_are_attention():
    """Project queries, attend per prompt with SDPA, project out, gate, reduce: the same numbers in fp64."""
    b, k, n, c, o, h, tokens = 2, 3, 10, 12, 5, 3, 7
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    generator = torch.Generator().manual_seed(7)
    features, wq, wo, reduce, gate = draw(b, n, c), draw(c, c), draw(c, c), draw(c, o), 0.3
    text_k, text_v = draw(k, tokens, c), draw(k, tokens, c)
    mask = torch.arange(tokens)[None] < torch.tensor([7, 1, 4])[:, None]
    heads = lambda x: x.unflatten(-1, (h, c // h)).transpose(-3, -2)  # noqa: E731  [., H, rows, C/H]

    attended = F.scaled_dot_product_attention(
        heads(features @ wq)[:, None].expand(b, k, h, n, c // h),
        heads(text_k)[None].expand(b, k, h, tokens, c // h),
        heads(text_v)[None].expand(b, k, h, tokens, c // h),
        attn_mask=mask[None, :, None, None],
    )  # [B, K, H, N, C/H]
    want = (features[:, None] + gate * attended.transpose(2, 3).flatten(3) @ wo) @ reduce

    keys = torch.einsum("chd,klhd->khcl", wq.unflatten(1, (h, -1)), text_k.unflatten(-1, (h, -1))) * (c // h) ** -0.5
    values = torch.einsum("klhd,hdo->khlo", text_v.unflatten(-1, (h, -1)), (gate * wo @ reduce).unflatten(0, (h, -1)))
    result = twins.text_injection(features, features @ reduce, keys, values, mask)
    torch.testing.assert_close(result, want, rtol=1e-12, atol=1e-10)
    split_keys = text_k.unflatten(-1, (h, -1)).permute(0, 2, 3, 1) * (c // h) ** -0.5  # [K, H, C/H, L]
    split = twins.text_injection(features @ wq, features @ reduce, split_keys, values, mask)
    torch.testing.assert_close(split, want, rtol=1e-12, atol=1e-10)
    singles = [value.float().contiguous() for value in (features, features @ reduce, keys, values)]
    torch.testing.assert_close(ops.text_injection(*singles, mask), want.float(), rtol=1e-4, atol=1e-4)


def test_cross_attention_is_sdpa_and_keeps_the_layout():
    query, key, value, mask, scale = attention_inputs(torch.float64)
    want = F.scaled_dot_product_attention(query[:1], key[:1], value[:1], mask[:1, None, None], scale=scale)
    inputs = [query.float(), key.float(), value.float(), mask, scale]
    result = ops.cross_attention(*inputs)
    torch.testing.assert_close(result[:1], want.float(), rtol=1e-5, atol=1e-5)
    assert not result[1].any()  # no real token: zeros, where SDPA gives NaN or the mean
    assert result.stride() == query.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_prompt_of_padding_returns_base_exactly(dtype):
    inputs = text_inputs(*SHAPE, dtype)
    inputs[4][2] = False
    result = ops.text_injection(*inputs)
    assert torch.equal(result[:, 2], inputs[1])
    assert result.dtype == dtype


def test_padding_tokens_change_nothing():
    inputs = text_inputs(*SHAPE, torch.float32)
    b, k, n, c, o, h, tokens = SHAPE
    longer = text_inputs(b, k, n, c, o, h, tokens + 4, torch.float32)
    longer[:2] = inputs[:2]
    longer[2][..., :tokens], longer[3][:, :, :tokens] = inputs[2], inputs[3]
    longer[4] = F.pad(inputs[4], (0, 4))
    torch.testing.assert_close(ops.text_injection(*longer), ops.text_injection(*inputs))


def test_prompts_do_not_see_each_other():
    inputs = text_inputs(*SHAPE, torch.float32)
    alone = [inputs[0], inputs[1], *(value[1:2].contiguous() for value in inputs[2:])]
    torch.testing.assert_close(ops.text_injection(*inputs)[:, 1:2], ops.text_injection(*alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_latent_concat_copies_bit_by_bit(dtype, channels_last):
    image, mask, _, _ = (value.to(dtype) for value in latents())
    want = torch.cat([image.repeat_interleave(3, 0), mask], 1)
    result = ops.latent_concat(image, mask, prompts=3, channels_last=channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert torch.equal(result, want)
    assert result.is_contiguous(memory_format=memory_format)
    buffer = torch.full_like(want, torch.nan, memory_format=memory_format)
    assert ops.latent_concat(image, mask, prompts=3, out=buffer) is buffer
    assert torch.equal(buffer, want)


def test_sampler_step_is_a_step_and_a_concatenation():
    image, mask, velocity, noise = latents()
    options = {"prompts": 3, "scale": 0.7, "noise": noise, "noise_scale": 0.2, "out_dtype": torch.bfloat16}
    step = {"mask_coefficient": 0.6, "v_coefficient": -0.8}
    following, both = ops.sampler_step(image, mask, velocity, **step, **options)
    torch.testing.assert_close(following, 0.6 * mask - 0.8 * velocity)
    assert torch.equal(both, ops.latent_concat(image, following, **options))
    buffers = {"mask_out": torch.empty_like(mask), "out": torch.empty_like(both)}
    options.pop("out_dtype")
    ops.sampler_step(image, mask, velocity, **step, **options, **buffers)
    assert torch.equal(buffers["mask_out"], following)
    assert torch.equal(buffers["out"], both)


def test_ddim_coefficients_follow_the_scheduler():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
        clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    scheduler.set_timesteps(4)
    image, mask, velocity, _ = latents()
    times = [int(t) for t in scheduler.timesteps] + [-1]
    assert scheduler.alphas_cumprod[times[0]] == 0  # the first step starts from pure noise
    for now, then in itertools.pairwise(times):
        powers = [1.0 if t < 0 else float(scheduler.alphas_cumprod[t]) for t in (now, then)]
        a, b = ops.ddim_coefficients(*powers)
        following, _ = ops.sampler_step(image, mask, velocity, prompts=3, mask_coefficient=a, v_coefficient=b)
        torch.testing.assert_close(following, scheduler.step(velocity, now, mask).prev_sample, rtol=1e-5, atol=1e-5)


def test_low_precision_twin_is_close_to_fp64():
    for dtype in (torch.float16, torch.bfloat16):
        inputs = text_inputs(1, 4, 40, 64, 24, 4, 8, dtype)
        exact = twins.text_injection(*as_double(inputs))
        relative = (ops.text_injection(*inputs).double() - exact).abs().max() / exact.abs().max()
        assert relative < 4 * torch.finfo(dtype).eps
