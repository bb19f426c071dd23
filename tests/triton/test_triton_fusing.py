"""fuse and unfuse on models that follow the `kernel_slots` protocol."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from triton_support import text_inputs

from digseg_triton import fuse, ops, unfuse


def plain_text_injection(features, base, keys, values, token_mask):
    """A model's own formula, written another way than the twin: a loop over prompts and heads."""
    prompts = []
    for k in range(keys.shape[0]):
        total = base
        for head in range(keys.shape[1]):
            scores = (features @ keys[k, head]).masked_fill(~token_mask[k], -1e30)
            total = total + (scores.softmax(-1) * token_mask[k]) @ values[k, head]
        prompts.append(total)
    return torch.stack(prompts, 1)


def own_op(x):
    return x


class Pathway(nn.Module):
    """Two text injections and a label map, with weights, a slot of its own and one that is not ours."""

    class Scale(nn.Module):
        def __init__(self, c: int, o: int) -> None:
            super().__init__()
            self.reduce = nn.Linear(c, o, bias=False)
            self.kernel_slots = {"text_injection": plain_text_injection, "own_op": own_op}

        def forward(self, features, keys, values, token_mask):
            base = self.reduce(features)
            slots = self.kernel_slots
            return slots["own_op"](slots["text_injection"](features, base, keys, values, token_mask))

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList([self.Scale(12, 5), self.Scale(12, 5)])

    def forward(self, features, keys, values, token_mask):
        return sum(scale(features, keys, values, token_mask) for scale in self.scales)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Pathway().eval()


@pytest.fixture
def inputs():
    features, _, *rest = text_inputs(2, 3, 10, 12, 5, 2, 7, torch.float32)
    rest[2][1] = False
    return (features, *rest)


def test_fused_and_unfused_agree_and_unfuse_restores_bit_for_bit(model, inputs):
    before, weights = model(*inputs), copy.deepcopy(model.state_dict())
    originals = [scale.kernel_slots for scale in model.scales]
    report = fuse(model)
    assert report.fused == ("scales.0:text_injection", "scales.1:text_injection")
    assert report.unknown == ("scales.0:own_op", "scales.1:own_op")
    assert model.scales[0].kernel_slots["text_injection"] is ops.text_injection
    torch.testing.assert_close(model(*inputs), before, rtol=1e-5, atol=1e-5)
    assert unfuse(model) == 2
    assert torch.equal(model(*inputs), before)
    assert all(scale.kernel_slots is original for scale, original in zip(model.scales, originals))
    assert originals[0] == {"text_injection": plain_text_injection, "own_op": own_op}
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not [name for scale in model.scales for name in vars(scale) if "digseg" in name]


def test_both_are_idempotent(model, inputs):
    before = model(*inputs)
    assert unfuse(model) == 0
    first, second = fuse(model), fuse(model)
    assert first == second
    assert unfuse(model) == 2
    assert unfuse(model) == 0
    assert torch.equal(model(*inputs), before)
    assert model.scales[0].kernel_slots["text_injection"] is plain_text_injection


def test_only_the_given_instance_changes(model):
    other = copy.deepcopy(model)
    fuse(model)
    assert other.scales[0].kernel_slots["text_injection"] is plain_text_injection


def test_slots_of_a_class_stay_on_the_class():
    class Shared(nn.Module):
        kernel_slots = {"mask_argmax": own_op}  # noqa: RUF012

    one, two = Shared(), Shared()
    fuse(one)
    assert one.kernel_slots["mask_argmax"] is ops.mask_argmax
    assert two.kernel_slots["mask_argmax"] is own_op
    unfuse(one)
    assert "kernel_slots" not in vars(one)
    assert one.kernel_slots["mask_argmax"] is own_op


def test_a_fused_model_can_be_copied_pickled_and_compiled(model, inputs):
    before = model(*inputs)
    fuse(model)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert clone.scales[1].kernel_slots["text_injection"] is ops.text_injection
        torch.testing.assert_close(clone(*inputs), before, rtol=1e-5, atol=1e-5)
        assert unfuse(clone) == 2
        assert torch.equal(clone(*inputs), before)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), before, rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_a_fused_model(model, inputs):
    grads = []
    for prepare in (lambda m: None, fuse):
        model.zero_grad()
        prepare(model)
        model(*inputs).square().mean().backward()
        grads.append(model.scales[0].reduce.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_report_says_what_will_run(model, monkeypatch):
    report = fuse(model)
    assert "2 slots fused, running PyTorch twins (tensors are on cpu, kernels need cuda)" in str(report)
    assert "unknown slots left alone: scales.0:own_op, scales.1:own_op" in str(report)
    monkeypatch.setenv("DIGSEG_TRITON", "0")
    assert fuse(model).twin_reason == "DIGSEG_TRITON turns kernels off"


def test_a_model_without_slots_is_left_alone():
    report = fuse(nn.Linear(2, 2))
    assert report.fused == ()
    assert unfuse(nn.Linear(2, 2)) == 0


def test_package_names_are_modules_or_functions_but_never_both():
    import digseg_triton.mask_argmax
    import digseg_triton.text_injection as module

    assert callable(module.launch)
    assert callable(digseg_triton.fuse)
    assert ops.text_injection is module.text_injection
