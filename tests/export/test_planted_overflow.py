"""The whole export on a nano model with a planted overflow, and the promises that need a real model: same bytes twice."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from nano_models import build_nano
from safetensors.numpy import load_file

from digseg_engine.bundle import open_bundle
from digseg_engine.errors import InputError, VerificationError
from digseg_engine.precisions import Limits, spec_of
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.profile import make_profile
from digseg_engine.runtime.source import open_source
from digseg_export import calibration, quantize, verify
from digseg_export.progress import StepTimer
from digseg_export.publish import Options, publish, trace

PLANTED = "a convolution of the trunk, scaled so that its output leaves fp16; the norm behind it takes the scale away"


@pytest.fixture(scope="module")
def planted(nano_preset, raw_tokenizer):
    """A nano checkpoint whose float32 masks are as good as any, with one activation near 1e6; traced once."""
    checkpoint = build_nano(nano_preset, raw_tokenizer)
    block = checkpoint.student.unet.down_blocks[0].resnets[0]
    block.conv1.weight *= 2e5
    block.conv1.bias *= 2e5
    return checkpoint, trace(checkpoint, StepTimer(lambda step: None)), raw_tokenizer.to_str().encode()


@pytest.fixture
def export(planted, tmp_path, monkeypatch):
    """export(precision, name, **options) with two scenes per domain."""
    monkeypatch.setattr(verify, "SCENES_PER_DOMAIN", 2)
    monkeypatch.setattr(calibration, "SCENES_PER_DOMAIN", 2)

    def run(precision, name="b", limits=None, **options):
        checkpoint, traced, tokenizer = planted
        return publish(checkpoint, traced, tokenizer, tmp_path / name, precision, limits or spec_of(precision).limits,
                       StepTimer(lambda step: None), Options(**options))  # fmt: skip

    return run


@pytest.mark.slow
def test_a_planted_overflow_is_named_and_nothing_is_published(export, tmp_path):
    with pytest.raises(VerificationError) as caught:
        export("fp16", measured_islands=False)
    message = str(caught.value)
    assert "image encoder" in message and "first bad node: " in message and "nothing was published" in message
    assert "in fp16 the graph is not finite" in message and "--auto-islands" in message
    assert list(tmp_path.iterdir()) == []
    named = message.split("first bad node: ")[1].split(" ")[0]

    done = export("fp16", measured_islands=False, auto_islands=True)
    islands = done.policy["graphs"]["image_encoder.onnx"]["nodes"]
    assert named in islands and islands[named].startswith("bisect: its output reaches")
    reached = float(islands[named].split("reaches ")[1].split(" ")[0])
    assert reached > 65504 and min(c.iou for c in done.checks if c.iou is not None and "PyTorch" not in c.graph) > 0.99
    assert (
        json.loads((tmp_path / "b" / "precision.json").read_text())["graphs"]["image_encoder.onnx"]["nodes"] == islands
    )


@pytest.mark.slow
def test_measured_ranges_find_the_same_node_before_verification(export, tmp_path):
    done = export("fp16")
    reasons = done.policy["graphs"]["image_encoder.onnx"]["nodes"].values()
    assert any("on the calibration pictures; fp16 ends at 65504" in reason for reason in reasons)
    assert "training scenes" in done.policy["calibrated_on"]
    coarse = dataclasses.replace(spec_of("bf16").limits, iou=0.9)  # random weights: logits crowd around 0
    assert export("bf16", "w", coarse).policy["calibrated_on"].startswith("nothing: bf16")  # no overflow in bf16


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_two_exports_give_the_same_bytes(export, tmp_path, precision):
    for name in ("one", "two"):
        export(precision, name)
    first, second = (open_bundle(tmp_path / name).manifest for name in ("one", "two"))
    assert first["files"] == second["files"]
    first.pop("created"), second.pop("created")
    assert first == second


@pytest.mark.slow
def test_int8_is_quantised_smaller_and_runs(export, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "LIMIT", 0.6)  # random weights lose more than trained ones
    wide, done = export("fp32", "wide"), export("int8", "small", Limits(1.0, 0.2))
    report = done.policy["graphs"]["image_encoder.onnx"]
    assert report["quantised"] > len(report["left_out"]) and all(report["left_out"].values())
    model = onnx.load(str(tmp_path / "small" / "image_encoder.onnx"))
    quantised = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims}
    scales = {n.input[0]: n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    held = {t.name: t for t in model.graph.initializer}
    weights = [name for name in quantised if name in scales and len(quantised[name].dims) > 1]
    assert weights and all(list(held[scales[name]].dims) for name in weights)  # one scale per output channel
    zero = [onnx.numpy_helper.to_array(t) for name, t in quantised.items() if "zero_point" in name]
    assert all(not values.any() for values in zero)  # symmetric, as TensorRT asks
    ratio = done.sizes["image_encoder.data"] / wide.sizes["image_encoder.data"]
    assert ratio < 0.6  # nano layers are so small that scales and biases weigh as much as they
    backend = OrtBackend(open_source(tmp_path / "small"))
    keys, values = backend.encode_text(np.zeros((2, 8), np.int64), np.ones((2, 8), bool))
    encoding = backend.encode_image(np.zeros((1, 3, 64, 64), np.float32))
    assert backend.decode(encoding, keys, values, np.ones((2, 8), bool)).shape[:2] == (1, 2)


@pytest.mark.slow
def test_fixed_shapes_are_written_into_the_graphs_and_their_golden_sample(export, planted, tmp_path):
    profile = make_profile(*[{"H": 64, "W": 96, "K": 4}] * 3, 64, 8)
    done = export("fp32", shapes=lambda checkpoint: profile)
    assert done.checks[-1].graph.endswith("mask_decoder.fp32.onnx at its profile") and done.checks[-1].pairs == 4
    dims = {}
    for name in ("image_encoder.onnx", "mask_decoder.onnx", "mask_decoder.fp32.onnx"):
        model = onnx.load(str(tmp_path / "b" / name), load_external_data=False)
        dims[name] = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert dims["image_encoder.onnx"] == {"image": [1, 3, 64, 96]}
    assert dims["mask_decoder.onnx"] == dims["mask_decoder.fp32.onnx"]
    asked, channels = dims["mask_decoder.onnx"], planted[0].student.layout.channels
    assert asked["encoding"] == [1, channels, 8, 12] and asked["text_keys"][0] == 4 and asked["text_keys"][-1] == 0
    golden = load_file(str(tmp_path / "b" / "golden.safetensors"))
    assert golden["image"].shape == (1, 3, 64, 96) and golden["logits"].shape[:2] == (1, 4)
    assert open_bundle(tmp_path / "b").manifest["shapes"]["H"] == {"min": 64, "opt": 64, "max": 64}
    backend = OrtBackend(open_source(tmp_path / "b"))
    with pytest.raises(InputError, match=r"rows of pixels.*exactly 64"):
        backend.encode_image(np.zeros((1, 3, 96, 96), np.float32))


@pytest.mark.slow
def test_limits_of_the_user_are_held(export, tmp_path):
    tight = dataclasses.replace(spec_of("fp32").limits, absolute=0.0)
    with pytest.raises(VerificationError, match=r"--atol"):
        export("fp32", limits=tight)
    with pytest.raises(VerificationError, match=r"--rtol.*try --precision fp16"):
        export("int8", limits=dataclasses.replace(spec_of("int8").limits, relative=1e-6))
    assert list(tmp_path.iterdir()) == []
