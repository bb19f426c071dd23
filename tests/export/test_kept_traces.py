"""The tests' own store of traced graphs gives a graph for what it was traced from, and for nothing else."""

from types import SimpleNamespace

import pytest
import torch
from kept_traces import keeping, key_of
from torch import nn


class Scaled(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor, self.inner = factor, nn.Linear(3, 3)

    def forward(self, x):
        return self.factor * self.inner(x)


@pytest.fixture
def scaled():
    torch.manual_seed(0)
    return Scaled()


def alike(scaled, **settings):
    other = Scaled(**settings)
    other.load_state_dict(scaled.state_dict())
    return other


def test_weights_classes_and_settings_make_the_key(scaled):
    key = key_of(scaled, ["b"])
    assert key_of(alike(scaled), ["b"]) == key and key_of(alike(scaled).eval(), ["b"]) == key
    assert key_of(scaled, ["c"]) != key and key_of(alike(scaled, factor=3.0), ["b"]) != key
    other = alike(scaled)
    other.inner.bias.data[0] += 1e-6
    assert key_of(other, ["b"]) != key
    other = alike(scaled)
    other.inner = nn.Sequential(other.inner)
    assert key_of(other, ["b"]) != key


def test_a_pooled_student_is_another(nano):
    from diffusers.models.attention_processor import Attention

    from digseg_engine.model.pooled_attention import PooledSelfAttention

    attention = next(part for part in nano.student.modules() if isinstance(part, Attention))
    keys = {key_of(nano.student, [])}
    for pool in (2, 4, 2):
        attention.set_processor(PooledSelfAttention(pool))
        keys.add(key_of(nano.student, []))
    assert len(keys) == 3


def test_a_graph_is_traced_once(scaled, tmp_path):
    from onnx import ModelProto

    traced = []

    def trace(module, spec, arguments, shapes):
        traced.append(spec)
        return ModelProto(producer_name=str(len(traced)))

    export, spec = keeping(trace, tmp_path / "traces"), SimpleNamespace(file="a.onnx")
    asked = (spec, (torch.zeros(2, 3),), {"x": {0: "B"}})
    assert export(scaled, *asked).producer_name == export(alike(scaled), *asked).producer_name == "1"
    assert export(alike(scaled, factor=3.0), *asked).producer_name == "2"
    assert export(scaled, spec, (torch.zeros(2, 4),), {"x": {0: "B"}}).producer_name == "3" and len(traced) == 3
