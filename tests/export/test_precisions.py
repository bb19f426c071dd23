"""One table says what is to be known of a precision, and nobody else spells one out."""

import ast
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from digseg_engine import precisions
from digseg_engine.errors import UsageError
from digseg_engine.precisions import PRECISIONS, spec_of, those
from digseg_export.inspector import check_precision_of, type_of
from digseg_export.request import Request
from digseg_export.targets import TARGETS, find_target

ROOT = Path(__file__).resolve().parents[2]
OTHERWISE = {  # files in which the word is another thing, and which
    "digseg_engine/model/stable_diffusion.py": "the variant in diffusers' file names",
    "digseg_engine/runtime/backends/openvino_backend.py": "what its devices compute in, whatever the bundle says",
    "digseg_engine/runtime/backends/torch_backend.py": "what this backend computes in, whatever the bundle says",
    "digseg_engine/training/thrift.py": "mixed precision of a training",
    "digseg_engine/training/sharding.py": "mixed precision of a training",
    "digseg_engine/commands/train.py": "mixed precision of a training",
}


def spelled(path):
    """The names of precisions among a file's strings, with their lines."""
    tree = ast.parse(path.read_text())
    return [
        (node.value, node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in [*PRECISIONS]
    ]


def test_nobody_else_spells_a_precision_out():
    files = [path for top in ("digseg_engine", "export/digseg_export") for path in (ROOT / top).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): spelled(path) for path in files}
    found = {name: lines for name, lines in found.items() if lines}
    assert {name for name in found if name != "digseg_engine/precisions.py"} == set(OTHERWISE), found


def test_the_names_are_those_of_onnx_numpy_and_tensorrt():
    for spec in PRECISIONS.values():
        assert TensorProto.DataType.Value(spec.onnx) and np.dtype(spec.host)
        assert not (spec.reduced and spec.quantised) and spec.width == (
            1 if spec.quantised else np.dtype(spec.host).itemsize
        )
        assert spec.reported.search(spec.name) and type_of({"DataType": spec.name}) == spec.name
        assert type_of({"DataType": spec.tensorrt.capitalize()}) == spec.name  # as TensorRT 11 reports it


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the extra tensorrt-rtx")
def test_tensorrt_has_a_type_of_each_name():
    import tensorrt_rtx

    assert all(hasattr(tensorrt_rtx.DataType, spec.tensorrt) for spec in PRECISIONS.values())


def test_boards_take_what_their_gpu_is_new_enough_for():
    assert TARGETS["jetson-orin"].precisions == ("fp32", "fp16", "bf16", "int8")
    assert TARGETS["jetson-thor"].precisions == TARGETS["desktop"].precisions == tuple(PRECISIONS)


def test_a_precision_that_is_added_is_known_everywhere(monkeypatch):
    """The path of a new one: a row of the table, and every question about it has an answer."""
    new = replace(
        PRECISIONS["fp16"], name="fp12", tensorrt="TWELVE", reported=precisions._reported("fp12"), lowest=(100, "new")
    )
    monkeypatch.setitem(PRECISIONS, "fp12", new)
    assert spec_of("fp12") is new and those(lambda spec: spec.reduced) == "fp16, bf16 or fp12"
    Request(precision="fp12", auto_islands=True).check()
    assert Request(precision="fp12").limits() == new.limits
    assert find_target("jetson-thor", "fp12").name == "jetson-thor"
    with pytest.raises(UsageError, match="fp12 does not apply to --target jetson-orin"):
        find_target("jetson-orin", "fp12")
    report = '{"Layers": [{"Name": "a", "Outputs": [{"DataType": "FP12"}]}]}'
    assert check_precision_of(report, "fp12") == {"fp12": 1}
