"""Folded bundles through the real TensorRT-RTX, and more names than a plan can hold."""

from pathlib import Path

import pytest
from pico_exports import *  # noqa: F403
from pico_exports import export

from digseg_engine.errors import UsageError
from digseg_export.plan_builder import BuildOptions, check_labels
from digseg_export.to_tensorrt_rtx import build_plans

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")


def vocabulary(folder: Path, count: int) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(f"thing number {i}" for i in range(count)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "names", "labels_only"), [("fp16", 32, False), ("int8", 32, True), ("int8", 5, False)]
)
def test_a_folded_bundle_builds(traced, tmp_path, precision, names, labels_only):
    options = {"vocabulary": vocabulary(tmp_path, names), "labels_only": labels_only}
    export(traced, tmp_path / "b", precision, options, labels=0.5)
    plans = build_plans(tmp_path / "b", tmp_path / "p", (89, 120), BuildOptions(), lambda text: None)
    assert [row.graph for row in plans.rows] == ["image_encoder.onnx", "labels.onnx"]
    assert all(row.types[precision] > 0 and row.unexplained == [] for row in plans.rows)


def test_more_names_than_a_plan_holds_are_refused():
    from digseg_engine.contract import Folding

    check_labels(None)
    check_labels(Folding(32))
    with pytest.raises(UsageError, match="a plan can hold 32 names at most, and this vocabulary has 33"):
        check_labels(Folding(33))
