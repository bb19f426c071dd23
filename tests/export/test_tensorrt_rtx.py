"""The real TensorRT-RTX: its parser and builder need no GPU. Small graphs with the contract's borders, built in seconds."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import run_command
from onnx import TensorProto, helper, numpy_helper
from programs import LIMIT
from small_graphs import replant, small_bundle

from digseg_engine.bundle import open_bundle
from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER, PRESENCE, TEXT_ENCODER
from digseg_engine.errors import BackendError, UsageError, VerificationError
from digseg_engine.precisions import PRECISIONS
from digseg_engine.runtime.backends import tensorrt_native as native
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT_RTX, check_version
from digseg_engine.runtime.plans import plan_name
from digseg_export import network_check, plan_builder
from digseg_export.plan_builder import BuildOptions, build_plan, shapes_of
from digseg_export.to_tensorrt_rtx import build_plans, default_plans, parse_targets

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
TWO = (86, 120)


def silent(text):
    """Progress that nobody looks at."""


def build(bundle, output, **options):
    return build_plans(
        bundle.folder, output, TWO, options.pop("options", BuildOptions()), options.pop("progress", silent)
    )


@pytest.fixture
def bundle(tmp_path):
    return small_bundle(tmp_path / "b")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_becomes_a_plan_in_a_folder_of_its_own(tmp_path, precision):
    bundle = small_bundle(tmp_path / "b", precision)
    said = []
    plans = build(bundle, tmp_path / "p", progress=said.append)
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {"manifest.json", *(plan_name(spec) for spec in bundle.graphs.values())}
    body = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert body["format"] == "digseg.plans/1" and body["bundle"] == bundle.digest and body["targets"] == list(TWO)
    assert body["library"] == {"name": "tensorrt-rtx", "version": importlib.metadata.version("tensorrt-rtx-cu13")}
    assert body["profile"] == bundle.manifest["shapes"] and body["precision"] == precision
    assert {row.graph: row.types for row in plans.rows} == {
        "text_encoder.onnx": {precision: 2}, "image_encoder.onnx": {precision: 1}, "presence.onnx": {precision: 4},
        "mask_decoder.onnx": {precision: 4}}  # fmt: skip
    for row in plans.rows:
        assert row.plan == (tmp_path / "p" / row.graph.replace("onnx", "plan")).stat().st_size > 0 and row.layers > 0
        assert row.unexplained == []
    assert any("build mask_decoder.onnx: Building engine" in text for text in said)
    assert len(small_bundle(tmp_path / "other", precision, presence=False).graphs) == 3 < len(plans.rows)
    build(bundle, tmp_path / "p")  # an older folder of plans is replaced
    assert open_bundle(bundle.folder).digest == bundle.digest  # nothing went into the bundle


def test_a_folder_of_something_else_is_not_replaced(bundle, tmp_path):
    other = small_bundle(tmp_path / "other")
    with pytest.raises(UsageError, match=r"other exists.*manifest\.json is missing or not ours"):
        build(bundle, other.folder)
    with pytest.raises(UsageError, match="lies in the bundle"):
        build(bundle, bundle.folder / "plans")
    assert default_plans(Path("models/b200-fp16")) == Path("models/b200-fp16-tensorrt-rtx")


def refused(bundle, output, kind, words, **options):
    """The build fails with one line that says `words`, and leaves nothing behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(kind, match=words) as caught:
        build(bundle, output, **options)
    assert "\n" not in str(caught.value) and sorted(output.parent.iterdir()) == before


def constant(model, values, name="planted"):
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def foreign_operator(model):
    """An operator that the parser does not know."""
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    made = helper.make_node("Bernoulli", [node.output[0]], ["drawn"], name="node_drawn")
    for other in model.graph.node:
        other.input[:] = ["drawn" if name == node.output[0] else name for name in other.input]
    model.graph.node.insert(list(model.graph.node).index(node) + 1, made)


def half_softmax(model):
    """The island around the softmax is gone."""
    makers = {name: node for node in model.graph.node for name in node.output}
    (softmax,) = (n for n in model.graph.node if n.op_type == "Softmax")
    makers[softmax.input[0]].attribute[0].i = TensorProto.FLOAT16


def integer_weight(model):
    """A table of integers as a weight: TensorRT takes it, and would compute with 64 bits."""
    table = constant(model, np.ones((2048, 1), np.int64))
    model.graph.node.insert(0, helper.make_node("Gather", [table, "token_ids"], ["looked_up"], name="node_table"))
    model.graph.node.insert(
        1, helper.make_node("Squeeze", ["looked_up", constant(model, np.array([2]), "axis")], ["ones"])
    )
    model.graph.node.insert(2, helper.make_node("Mul", ["token_ids", "ones"], ["ids"]))
    words = next(n for n in model.graph.node if n.op_type == "Gather" and n.name != "node_table")
    words.input[1] = "ids"


def other_border(model):
    model.graph.output[0].name = "logit"
    model.graph.node[-1].output[0] = "logit"


@pytest.mark.parametrize(
    ("spec", "change", "kind", "words"),
    [
        (IMAGE_ENCODER, foreign_operator, BackendError, r"TensorRT-RTX cannot read image_encoder\.onnx \(.*Bernoulli"),
        (
            MASK_DECODER,
            half_softmax,
            VerificationError,
            r"node_softmax_\d+ \(softmax\) computes in fp16; expected float32",
        ),
        (TEXT_ENCODER, integer_weight, VerificationError, r"planted is an Int64 weight of 2048 numbers"),
        (MASK_DECODER, other_border, VerificationError, r"logit is .* in the parsed network; expected no such tensor"),
    ],
)
def test_a_graph_that_breaks_a_rule_is_not_built(bundle, tmp_path, spec, change, kind, words):
    refused(replant(bundle, spec, change), tmp_path / "p", kind, words)


def test_a_named_island_is_held_to_float32(bundle):
    (conv,) = (n.name for n in onnx.load(str(bundle.file(IMAGE_ENCODER.file))).graph.node if n.op_type == "Conv")
    bundle.manifest["precision"]["graphs"] = {IMAGE_ENCODER.file: {"nodes": {conv: "measured"}}}
    logger = native.logger_of(trt)
    network = trt.Builder(logger).create_network(1)
    plan_builder.parse(trt, logger, network, bundle.file(IMAGE_ENCODER.file), TENSORRT_RTX)
    with pytest.raises(VerificationError, match=rf"{conv} \(convolution\) computes in fp16"):
        network_check.check_network(network, bundle, IMAGE_ENCODER)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("int8", r"text_keys is \('HALF', 5\) in the parsed network; expected \('FLOAT', 5\)"),
        ("bf16", r"expected \('BF16', 5\)"),
    ],
)
def test_another_precision_than_the_manifest_names_is_not_built(tmp_path, says, words):
    refused(small_bundle(tmp_path / "b", "fp16", says=says), tmp_path / "p", VerificationError, words)


def test_a_bundle_that_names_int8_and_has_no_such_layer_is_not_built(tmp_path):
    bundle = small_bundle(tmp_path / "b", "fp32", says="int8")
    refused(bundle, tmp_path / "p", VerificationError, r"text_encoder\.onnx has no int8 layer \(found 2 fp32\)")


def test_a_graph_that_was_left_in_float32_is_held_to_that(tmp_path):
    """Presence of an int8 bundle."""
    bundle = small_bundle(tmp_path / "b", "fp32", says="int8")
    logger = native.logger_of(trt)
    network = trt.Builder(logger).create_network(1)
    plan_builder.parse(trt, logger, network, bundle.file(PRESENCE.file), TENSORRT_RTX)
    with pytest.raises(VerificationError, match=r"presence\.onnx has no int8 layer \(found 4 fp32\)"):
        network_check.check_network(network, bundle, PRESENCE)
    bundle.manifest["precision"]["graphs"] = {PRESENCE.file: {"name": "fp32"}}
    assert network_check.check_network(network, bundle, PRESENCE) == {"fp32": 4}


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ({"H": (32, 60, 96)}, r"H = 60 pixels; expected a multiple of the model's stride 8"),
        ({"L": (8, 16, 78)}, r"L = 78 \(tokens\); expected 2 to 77"),
    ],
)
def test_shapes_that_the_model_does_not_take_are_not_built(tmp_path, spans, words):
    """The library knows nothing of strides: it would build a plan that fails when it runs."""
    refused(small_bundle(tmp_path / "b", spans=spans), tmp_path / "p", UsageError, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shapes: shapes.pop("image"), r"input tensor image is missing dimensions"),
        (lambda shapes: shapes.update(image=((1, 4, 64, 64),) * 3), r"Dimension mismatch for tensor image"),
        (lambda shapes: shapes.update(image=((2, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64))), r"refuses the shapes"),
    ],
)
def test_what_the_library_says_of_wrong_shapes_is_passed_on(bundle, change, words):
    shapes = shapes_of(bundle, IMAGE_ENCODER)
    change(shapes)
    with pytest.raises(BackendError, match=words) as caught:
        build_plan(trt, bundle.file(IMAGE_ENCODER.file), shapes, BuildOptions(), silent, TENSORRT_RTX, TWO)
    assert "\n" not in str(caught.value)


def test_a_build_that_is_cancelled_stops_and_keeps_nothing(bundle, tmp_path):
    said = []

    def cancel(text):
        said.append(text)
        if "Cloning" in text:
            raise KeyboardInterrupt

    refused(bundle, tmp_path / "p", KeyboardInterrupt, None, progress=cancel)
    assert "Cloning" in said[-1] and len(said) < 10


def test_ctrl_c_ends_a_build_with_one_line(bundle, tmp_path):
    program = Path(sys.executable).parent / "digseg-export"
    command = [str(program), "--bundle", "b", "--format", "tensorrt-rtx"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in running.stderr:
        if "build" in line:
            break
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    printed, complained = running.communicate(timeout=LIMIT)
    assert running.returncode == 130 and printed == "" and "stopped by Ctrl-C" in complained.splitlines()[-1]
    assert "Traceback" not in complained and [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_full_disk_is_one_line_and_nothing_is_kept(bundle, tmp_path):
    done = run_command("bash", "-c", "ulimit -f 100; exec digseg-export --bundle b --format tensorrt-rtx --quiet", cwd=tmp_path,
                       env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "cannot write" in line and "text_encoder.plan" in line
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compute-capability", "87"], "--compute-capability 87 is none that TensorRT-RTX"),
        (["--compute-capability", ","], "--compute-capability ',' is none"),
        (["--engines", "."], "the working directory"),
        (["--engines", "b/plans"], "lies in the bundle b; expected a folder of its own"),
        (["--engines", "b"], "lies in the bundle b"),
        (["--precision", "fp16"], "--bundle does not work together with --precision"),
        (["--timing-cache", "x"], "TensorRT-RTX times no kernels when it builds"),
    ],
)
def test_the_command_refuses_what_does_not_apply(bundle, tmp_path, options, words):
    done = run_command("digseg-export", "--bundle", "b", "--format", "tensorrt-rtx", *options, cwd=tmp_path)
    assert done.returncode == 2 and words in " ".join(done.stderr.split()) and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_command_builds_for_five_targets_and_says_what_it_made(bundle, tmp_path):
    done = run_command("digseg-export", "--bundle", "b", "--format", "tensorrt-rtx", cwd=tmp_path)
    assert done.returncode == 0 and "b-tensorrt-rtx" in done.stdout and "warning" not in done.stdout
    body = json.loads((tmp_path / "b-tensorrt-rtx" / "manifest.json").read_text())
    assert body["targets"] == [75, 80, 86, 89, 120]
    assert "mask_decoder.onnx" in done.stdout and "compute capability 75, 80, 86, 89, 120" in done.stdout
    dry = run_command("digseg-export", "--bundle", "b", "--format", "tensorrt-rtx", "--dry-run", "--json", "--engines", "e",
                      "--compute-capability", "sm89,8.6", cwd=tmp_path)  # fmt: skip
    assert json.loads(dry.stdout) == {"bundle": "b", "plans": "e", "compute capabilities": [89, 86]}
    assert not (tmp_path / "e").exists()


def test_a_ready_bundle_needs_nothing_of_what_exports_one(bundle, tmp_path):
    words = ["--bundle", "b", "--format", "tensorrt-rtx", "--compute-capability", "89", "--json", "--quiet"]
    hidden = dict.fromkeys(("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "skimage"))
    code = f"import sys; sys.modules.update({hidden!r}); sys.argv[1:] = {words!r}; from digseg_export.cli import main; main()"
    done = run_command(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["plans"]
    assert made["folder"] == "b-tensorrt-rtx" and made["targets"] == [89] and len(made["rows"]) == 4


def test_targets_and_versions_are_those_of_the_library():
    assert parse_targets("75, SM8.9,75", "fp16", trt) == (75, 89)
    with pytest.raises(UsageError, match=r"90 is none .* expected some of 75, 80, 86, 89, 120"):
        parse_targets("86,90", "fp16", trt)
    assert check_version(TENSORRT_RTX, trt.__version__) >= (1, 7)
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1\.6\.1 is too old; expected 1\.7 or newer"):
        check_version(TENSORRT_RTX, "1.6.1")


@pytest.mark.parametrize(
    ("precision", "targets", "older"),
    [("fp16", (75, 80, 86, 89, 120), None), ("fp32", (80, 86, 89, 120), 75), ("bf16", (80, 86, 89, 120), 75),
     ("int8", (80, 86, 89, 120), 75), ("fp8", (89, 120), 86)],
)  # fmt: skip
def test_a_precision_is_built_for_the_gpus_that_have_it(precision, targets, older):
    assert parse_targets(None, precision, trt) == targets
    if older:
        with pytest.raises(
            UsageError, match=rf"--compute-capability {older} does not apply to {precision}: .* expected"
        ):
            parse_targets(f"120,{older}", precision, trt)


def test_what_the_compiler_says_of_an_older_gpu_is_what_we_say(tmp_path, monkeypatch):
    """float32 products on Turing: refused by us before the build, and by the library without our rule."""
    bundle = small_bundle(tmp_path / "b", "fp32")
    with pytest.raises(UsageError, match="75 does not apply to fp32"):
        build_plans(bundle.folder, tmp_path / "p", (75,), BuildOptions(), silent)
    monkeypatch.setitem(PRECISIONS, "fp32", replace(PRECISIONS["fp32"], lowest=(75, "")))
    with pytest.raises(BackendError, match=r"Turing \(SM75\): FP32 GEMM is not supported"):
        build_plans(bundle.folder, tmp_path / "p", (75,), BuildOptions(), silent)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
