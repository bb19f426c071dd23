"""The switch, the fall-back, and an import that needs neither triton nor a GPU."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from triton_support import text_inputs

from digseg_triton import KernelUnavailableError, environment, ops

INPUTS = text_inputs(1, 2, 3, 4, 4, 1, 5, torch.float32)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("value", "mode"), [("", "auto"), ("auto", "auto"), ("0", "off"), ("OFF", "off"),
                                             ("1", "force"), ("force", "force")])  # fmt: skip
def test_modes(monkeypatch, value, mode):
    monkeypatch.setenv("DIGSEG_TRITON", value)
    assert environment.mode() == mode


def test_a_misspelt_mode_is_an_error(monkeypatch):
    monkeypatch.setenv("DIGSEG_TRITON", "yes")
    with pytest.raises(ValueError, match="DIGSEG_TRITON must be 0, 1, off, auto or force, got 'yes'"):
        ops.text_injection(*INPUTS)


def test_force_on_the_cpu_is_an_error(monkeypatch):
    want = ops.text_injection(*INPUTS)
    monkeypatch.setenv("DIGSEG_TRITON", "force")
    reason = r"text_injection: the Triton kernel cannot run: .*; unset DIGSEG_TRITON"
    with pytest.raises(KernelUnavailableError, match=reason):
        ops.text_injection(*INPUTS)
    for value in ("0", "auto"):
        monkeypatch.setenv("DIGSEG_TRITON", value)
        assert torch.equal(ops.text_injection(*INPUTS), want)


def decide(monkeypatch, mode, why_not, unsupported):
    """`use_kernel` for a CUDA tensor on a machine described by `why_not`."""
    monkeypatch.setenv("DIGSEG_TRITON", mode)
    monkeypatch.setattr(environment, "why_not", lambda device: why_not)
    return environment.use_kernel("some_op", CUDA, unsupported)


def test_decisions_on_a_gpu(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decide(monkeypatch, "auto", None, None)
        assert decide(monkeypatch, "force", None, None)
        assert not decide(monkeypatch, "off", None, None)
    with pytest.warns(RuntimeWarning, match="some_op: running in plain PyTorch: too wide"):
        assert not decide(monkeypatch, "auto", None, "too wide")
    with pytest.raises(KernelUnavailableError, match="too wide"):
        decide(monkeypatch, "force", None, "too wide")
    with pytest.raises(KernelUnavailableError, match="too old"):
        decide(monkeypatch, "force", "too old", None)


def test_reasons(monkeypatch):
    assert "tensors are on cpu" in (environment.why_not(CPU) or "")
    monkeypatch.setattr(environment, "_capability", lambda index: (7, 5))
    if torch.version.hip is None:
        assert "compute capability (7, 5) is older than (8, 0)" in (environment.why_not(CUDA) or "")
    monkeypatch.setattr(environment, "_has_triton", lambda: False)
    assert "triton is not installed" in (environment.why_not(CUDA) or "")


WITHOUT_TRITON = """
import importlib.machinery
import sys

found = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *a, **k: None if name == "triton" else found(name, *a, **k)
import torch
from digseg_triton import fuse, ops
features, base = torch.ones(1, 2, 4), torch.ones(1, 2, 3)
out = ops.text_injection(features, base, torch.ones(2, 1, 4, 5), torch.ones(2, 1, 5, 3), torch.ones(2, 5).bool())
assert out.eq(2).all(), out
assert not torch.cuda.is_initialized()
assert "triton" not in sys.modules
print("fine")
"""


@pytest.mark.slow
def test_import_and_run_without_triton():
    import digseg_triton

    root = digseg_triton.__path__[0].rsplit("/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, env={"PYTHONPATH": root}, check=False
    )
    assert done.stdout == "fine\n", done.stderr
