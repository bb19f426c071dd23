"""Ahead-of-time compilation for every architecture as a gate, without a GPU; and proof that the gate can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from programs import LIMIT

pytest.importorskip("triton.language", reason="triton is not installed: nothing to compile with")

from digseg_triton import aot
from digseg_triton.aot_cases import WIDER, cases

SHARES = [(87, 80, 86), (90, 89, 100, 120)]


@pytest.fixture(scope="module")
def compiled():
    """All cases, by {(arch, name): resources}, from two processes; and the list of broken limits."""
    import digseg_triton

    root = digseg_triton.__path__[0].rsplit("/", 1)[0]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "digseg_triton.aot", "--json", "--arch", *map(str, share)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for share in SHARES
    ]  # fmt: skip
    resources, broken = {}, []
    for process in running:
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode in (0, 1), err
        answer = json.loads(out)
        resources |= {(row["arch"], row["case"]): row for row in answer["results"]}
        broken += answer["problems"]
    return resources, broken


@pytest.mark.slow
def test_no_kernel_breaks_a_limit(compiled):
    """No spills, wide loads and stores, shared memory, parameter count, no scratch, PTX version."""
    resources, broken = compiled
    assert not broken
    assert {arch for arch, _ in resources} == set(aot.ARCHITECTURES)
    for arch in aot.ARCHITECTURES:
        names = {name.split()[0] for a, name in resources if a == arch}
        assert names == {"text_injection", "cross_attention", "latent_concat", "mask_argmax"}


def test_jetpack_6_can_read_the_ptx(compiled):
    resources, _ = compiled
    orin = [row for (arch, _), row in resources.items() if arch == 87]
    assert len(orin) == len(cases(87))
    assert {row["ptx"] for row in orin} == {"8.5"}


@pytest.mark.parametrize("case", cases(87)[:5], ids=lambda c: c.name)
def test_without_divisibility_hints_the_gate_fails(case):
    """The trap: a kernel compiled without them works, slowly. Every kernel must be caught."""
    found = aot.measure(case, 87, unhinted=case.hinted())
    assert found.wide_loads + found.wide_stores == 0
    assert any("wide" in text for text in aot.problems(found, case))


@pytest.mark.parametrize("name", ["features_ptr", "base_ptr", "keys_ptr", "values_ptr", "out_ptr"])
def test_one_missing_hint_is_enough(name):
    case = cases(87)[0]
    found = aot.measure(case, 87, unhinted=[name])
    assert aot.problems(found, case)


@pytest.mark.parametrize("case", cases(87)[:5], ids=lambda c: c.name)
def test_integers_of_one_compile(case):
    """Triton turns an argument of 1 into a constant (one prompt, one row): that is another program."""
    ones = {name: 1 for name, kind in case.signature.items() if kind == "i32"}
    rest = {name: kind for name, kind in case.signature.items() if name not in ones}
    single = replace(case, signature=rest, constants=case.constants | ones, divisible=())
    found = aot.measure(single, 87)
    assert found.stack <= aot.STACK_LIMIT
    assert found.parameters == len(rest) + aot.HIDDEN_PARAMETERS


def test_each_limit_can_fail():
    """A healthy result, spoilt one field at a time."""
    case = next(c for c in cases(87) if c.op == "text_injection")
    good = aot.Resources("x", 87, 128, 0, 163 * 1024, 9, 0, 4, len(case.signature) + 2, len(case.signature), 0, "8.5")
    assert aot.problems(good, case) == []
    spoilt = {"stack": 24, "shared": 163 * 1024 + 1, "wide_loads": 0, "narrow_loads": 99, "wide_stores": 0,
              "parameters": 5, "scratch": 16, "ptx": "8.7"}  # fmt: skip
    for field, value in spoilt.items():
        assert len(aot.problems(replace(good, **{field: value}), case)) == 1, field


def test_cases_declare_the_parameters_of_the_kernels_in_order():
    """Signature and constants together are exactly the kernel's arguments: a wrong order would pass garbage."""
    for arch in WIDER:
        for case in cases(arch, full=True):
            names = case.kernel().arg_names
            assert list(case.signature) == [name for name in names if name not in case.constants], case.name
            assert set(case.constants) | set(case.signature) == set(names), case.name
