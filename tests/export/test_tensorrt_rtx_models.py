"""Graphs of real models through the real TensorRT-RTX: every precision, dynamic, fixed and ranged shapes, the few-step
reference. A pico model: what is tested is that the library parses and builds everything this project publishes."""

import json
from pathlib import Path

import pytest
from conftest import run_command
from pico_exports import *  # noqa: F403
from pico_exports import RANGED, export

from digseg_engine.bundle import open_bundle
from digseg_engine.contract import GRAPHS
from digseg_engine.precisions import Limits
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT_RTX
from digseg_engine.runtime.plans import open_plans
from digseg_export.few_step import REFERENCE_GRAPHS, export_few_step
from digseg_export.plan_builder import BuildOptions, build_plan
from digseg_export.to_tensorrt_rtx import EXPLAINED, build_plans

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
TARGETS = (89, 120)  # every precision is for both
SHAPES = {"dynamic": {}, "fixed": {"imgsz": "64x96", "batch": 1, "prompts": 5}, "ranged": RANGED}
CASES = [pytest.param(precision, shapes, marks=() if (precision, shapes) == ("fp16", "ranged") else pytest.mark.long)
         for precision in ("fp32", "fp16", "bf16", "int8", "fp8") for shapes in SHAPES]  # fmt: skip


@pytest.mark.parametrize(("precision", "shapes"), CASES)
def test_every_precision_and_kind_of_shapes_builds(traced, tmp_path, precision, shapes):
    export(traced, tmp_path / "b", precision, SHAPES[shapes], iou=0.3, relative=0.5)
    plans = build_plans(tmp_path / "b", tmp_path / "p", TARGETS, BuildOptions(), lambda text: None)
    assert [row.graph for row in plans.rows] == [spec.file for spec in GRAPHS.values()]
    alone = {"presence.onnx"} if precision in ("int8", "fp8") else set()  # in float32 there
    assert all(
        row.types["fp32" if row.graph in alone else precision] > 0 and row.unexplained == [] for row in plans.rows
    )
    opened = open_plans(tmp_path / "p", open_bundle(tmp_path / "b"), "tensorrt-rtx", trt.__version__)
    assert opened.manifest["precision"] == precision and opened.manifest["targets"] == list(TARGETS)


@pytest.mark.long
def test_the_few_step_reference_builds(pico_folder, tmp_path):
    export_few_step(pico_folder, "fp16", tmp_path / "r", Limits(0.05, 0.3))
    sizes = {"N": (1, 2, 4), "L": (8, 16, 77), "h": (8, 16, 32), "w": (8, 16, 32), "H": (16, 32, 64), "W": (16, 32, 64)}
    sizes["D"] = (json.loads((pico_folder / "text_encoder" / "config.json").read_text())["hidden_size"],) * 3
    for spec in REFERENCE_GRAPHS.values():
        shapes = {t.name: tuple(tuple(a if isinstance(a, int) else sizes[a][end] for a in t.axes) for end in range(3))
                  for t in spec.inputs if t.axes}  # fmt: skip
        made = build_plan(
            trt, tmp_path / "r" / spec.file, shapes, BuildOptions(), lambda text: None, TENSORRT_RTX, TARGETS
        )
        assert made.plan.nbytes > 0 and made.layers > 10
        assert [text for text in made.warnings if not any(known in text for known in EXPLAINED)] == [], spec.file


@pytest.mark.slow
def test_the_command_exports_and_builds_as_typed(pico_folder, tmp_path):
    loose = ["--rtol", "0.5", "--min-iou", "0.1"]  # random weights
    done = run_command("digseg-export", str(pico_folder), "--precision", "fp16", "--format", "tensorrt-rtx", "-o", "rtx", *loose,
                       cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"rtx", "rtx-tensorrt-rtx"}
    body = json.loads((tmp_path / "rtx-tensorrt-rtx" / "manifest.json").read_text())
    assert body["targets"] == [75, 80, 86, 89, 120] and body["bundle"] == open_bundle(tmp_path / "rtx").digest
    assert "presence.onnx" in done.stdout and Path("rtx-tensorrt-rtx").name in done.stdout
    asked = ["--format", "tensorrt-rtx", "--compute-capability", "90"]
    refused = run_command("digseg-export", str(pico_folder), *asked, cwd=tmp_path)
    assert refused.returncode == 2 and "--compute-capability 90 is none" in refused.stderr  # before any work
