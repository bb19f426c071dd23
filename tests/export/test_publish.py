"""Export end to end: the command as typed, the promised bundle, and nothing published when verification fails."""

import json

import numpy as np
import onnx
import pytest
import torch
from conftest import run_command
from safetensors.numpy import load_file

from digseg_engine import Engine
from digseg_engine.bundle import open_bundle
from digseg_engine.contract import contract_json, graphs_of
from digseg_engine.errors import CheckpointError, UsageError, VerificationError
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.folder import BUNDLED, read_config
from digseg_engine.precisions import Limits
from digseg_engine.runtime.choice import pair_iou
from digseg_export.comparison import Check, Tally, compare, hold_to_limits
from digseg_export.graph_check import check_graph
from digseg_export.publish import export_bundle
from digseg_export.request import Request

HAS_READOUT = bool(read_config(BUNDLED)["student"].get("presence_width"))
SPECS = graphs_of(HAS_READOUT)


def test_the_bundle_holds_what_the_design_promises(bundle, tiny):
    opened = open_bundle(bundle)
    manifest = opened.manifest
    graphs = [name for spec in SPECS.values() for name in (spec.file, spec.data_file, spec.cpu_file)]
    others = ["tokenizer.json", "golden.safetensors", "precision.json", "sbom.cdx.json"]
    assert sorted(manifest["files"]) == sorted([*graphs, *others]) and ("presence" in manifest) == HAS_READOUT
    assert manifest["model"]["encoding"] == tiny.student.layout.channels
    assert manifest["contract"] == contract_json(HAS_READOUT) and manifest["precision"]["name"] == "fp16"
    assert all(manifest["tools"][name] for name in ("torch", "onnx", "onnxruntime", "digseg-engine"))
    assert manifest["licence"]["weights"].startswith("Apache-2.0") and manifest["model"]["stride"] == 16
    assert not [path for path in bundle.rglob("*") if path.is_symlink()]
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["demo.log", "digseg-tiny-fp16", "out"]


def test_verification_is_in_the_manifest_and_on_the_screen(bundle):
    verified = json.loads((bundle / "manifest.json").read_text())["verification"]
    checks = {(c["stage"], c["graph"]): c for c in verified["checks"]}
    # PyTorch autocast (a yardstick), the rounded graphs, the float32 graphs for a CPU, the graphs themselves; each in four parts,
    # and presence twice
    assert len(checks) == 4 * (4 + 2 * HAS_READOUT)
    for check in checks.values():
        assert check["mean_error"] <= check["max_error"]
        assert check["relative"] <= 2e-2
        if check["iou"] is not None:
            assert (
                check["iou"] >= 0.99
                and check["pairs"] >= (10 if "autocast" in check["graph"] else 40)
                and check["label_agreement"] >= 0.99
            )
    log = (bundle.parent / "demo.log").read_text()
    assert "end to end" in log and "fp16 bundle written to digseg-tiny-fp16" in log and "MB" in log


@pytest.mark.parametrize("name", [name for spec in SPECS.values() for name in (spec.file, spec.cpu_file)])
def test_graphs_are_valid_standard_and_stored_in_fp16(bundle, name):
    report = check_graph(bundle / name)
    weights = report["weights"]
    assert weights["FLOAT16"] > (20 if "encoder" in name else 1) * weights.get(
        "FLOAT", 0
    )  # the last layer is in float32
    assert report["opset"] <= 20 and not {"GroupNormalization", "Attention"} & set(report["operators"])


def test_graph_borders_are_those_of_the_contract(bundle):
    kinds = {"float32": 1, "int64": 7, "bool": 9, "graph": 10}
    for graph in SPECS.values():
        model = onnx.load(str(bundle / graph.file), load_external_data=False)
        for found, wanted in zip(
            [*model.graph.input, *model.graph.output], [*graph.inputs, *graph.outputs], strict=True
        ):
            assert found.name == wanted.name and found.type.tensor_type.elem_type == kinds[wanted.dtype], found.name
            dims = found.type.tensor_type.shape.dim
            assert len(dims) == len(wanted.axes), found.name
            fixed = [d.dim_value for d, axis in zip(dims, wanted.axes) if isinstance(axis, int)]
            assert fixed == [axis for axis in wanted.axes if isinstance(axis, int)]
            assert all(d.dim_param for d, axis in zip(dims, wanted.axes) if axis in ("B", "K", "L", "H", "W"))


def test_norm_statistics_and_softmax_stay_in_fp32(bundle):
    model = onnx.shape_inference.infer_shapes(onnx.load(str(bundle / "image_encoder.onnx"), load_external_data=False))
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    checked = 0
    for node in model.graph.node:
        if node.op_type in ("Softmax", "InstanceNormalization", "LayerNormalization"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
            checked += 1
        if node.op_type == "Conv" and node.output[0] in types:
            checked += types[node.output[0]] == onnx.TensorProto.FLOAT16
    assert checked > 50


def test_golden_sample_is_pytorchs_answer(bundle, tiny):
    golden = load_file(str(bundle / "golden.safetensors"))
    with torch.no_grad():
        text = tiny.text_encoder(torch.from_numpy(golden["token_ids"])).last_hidden_state
        folded = tiny.student.fold_text(text, torch.from_numpy(golden["token_mask"]))
        image = torch.from_numpy(golden["image"])
        logits = tiny.student(image, encode_image(tiny.vae, image), folded)
    assert np.abs(logits.numpy() - golden["logits"]).max() < 1e-3
    assert (golden["logits"] > 0).any()


@pytest.mark.slow
def test_fp32_export_of_any_checkpoint(nano_folder, tmp_path):
    done = export_bundle(nano_folder, "fp32", tmp_path / "b")
    assert done.precision == "fp32" and len(done.checks) == 8 and max(c.relative for c in done.checks) < 1e-4
    engine = Engine.load(tmp_path / "b")
    assert "fp32" in engine.backend.detail and "widened" not in engine.backend.detail
    assert [p.name for p in (tmp_path / "b").glob("*.fp32.onnx")] == ["mask_decoder.fp32.onnx"]
    picture = np.random.default_rng(0).integers(0, 255, (40, 72, 3), dtype=np.uint8)
    assert engine.segment(picture, ["red", "a blue star"]).masks.shape == (2, 40, 72)
    # the same checkpoint again, held to limits no graph can meet: exit by error, the old bundle untouched
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(VerificationError, match="nothing was published"):
        export_bundle(nano_folder, "fp32", tmp_path / "b", limits=Limits(relative=0.0, iou=1.0))
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir() if "tmp-" in p.name) == []


def test_bad_requests_are_refused_before_work(tmp_path):
    with pytest.raises(UsageError, match="unknown precision 'fp7'"):
        export_bundle(None, "fp7", tmp_path / "b")
    with pytest.raises(CheckpointError, match="not found"):
        export_bundle(tmp_path / "nowhere", "fp16", tmp_path / "b")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(UsageError, match="not a bundle"):
        export_bundle(None, "fp16", tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--precision", "fp7"], 2, "unknown precision 'fp7'; expected one of fp32, fp16"),
        (["nowhere"], 1, "checkpoint nowhere not found"),
        (["--output", "file/deep"], 2, "not a writable directory"),
        (["--speed", "11"], 2, "--speed"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, arguments, code, words):
    (tmp_path / "file").touch()
    done = run_command("digseg-export", *arguments, cwd=tmp_path)
    (line,) = [line for line in done.stderr.strip().splitlines() if line.startswith("digseg-export: error:")]
    assert done.returncode == code and words in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_comparison_sees_what_it_should():
    a = np.random.default_rng(0).standard_normal((1, 2, 8, 8)).astype(np.float32)
    same = compare("s", "g", a, a)
    assert same.relative == 0 and same.iou == 1 and same.pairs == 2
    shifted = compare("s", "g", a, np.roll(a, 1, axis=-1))
    assert shifted.iou < 0.7
    broken = a.copy()
    broken[0, 0, 0, 0] = np.nan
    for check, words in (
        (compare("s", "g", a, broken), "NaN"),
        (shifted, "differs from PyTorch"),
        (Check("s", "g", 0, 0, 1e-3, iou=0.5, worst_iou=0.1, pairs=9), "mask IoU 0.5000"),
    ):
        with pytest.raises(VerificationError, match=words):
            hold_to_limits(check, Limits(2e-2, 0.99))
    hold_to_limits(same, Limits(2e-2, 0.99))
    both = Tally()
    for got in (a, np.roll(a, 1, axis=-1)):
        both.add(a, got)
    check = both.check("s", "g")
    assert check.pairs == 4 and check.iou == pytest.approx((1 + shifted.iou) / 2)
    assert check.relative == pytest.approx(shifted.relative / np.sqrt(2)) and check.max_error == shifted.max_error
    empty = np.zeros((1, 1, 2, 2), bool)
    assert pair_iou(empty, empty).tolist() == [1.0] and pair_iou(empty, ~empty).tolist() == [0.0]


def test_shapes_that_do_not_fit_are_refused_before_the_graphs_are_traced(pico_folder, tmp_path):
    steps, options = [], Request(imgsz="101").options()
    with pytest.raises(UsageError, match="multiple of"):
        export_bundle(pico_folder, "fp32", tmp_path / "b", progress=steps.append, options=options)
    assert steps and not any("trace" in step for step in steps)
    assert list(tmp_path.iterdir()) == []
