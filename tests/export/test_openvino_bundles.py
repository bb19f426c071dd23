"""Bundles of every precision and shape in OpenVINO: it answers right, or says which operator it does not take."""

import numpy as np
import pytest
from pico_exports import RANGED, export, few_scenes, traced  # noqa: F401

from digseg_engine import Engine
from digseg_engine.errors import InputError
from digseg_engine.runtime.backends import openvino_backend
from digseg_export.prove import GOLDEN

pytestmark = pytest.mark.usefixtures("with_openvino")
PICTURE = np.random.default_rng(5).integers(0, 255, (60, 44, 3), np.uint8)
PROMPTS = ["red circle", "water", "a tree"]


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_precision(traced, tmp_path, precision):  # noqa: F811
    made = export(traced, tmp_path / "b", precision, {})
    said = {answer.backend: answer for answer in made.answers if answer.at == GOLDEN}
    assert said["openvino"].reason == "" and said["openvino"].error < made.limits.relative
    if openvino_backend.probe("openvino-bf16").usable:  # its own arithmetic is no fault of the bundle
        assert said["openvino-bf16"].reason == "computes in bf16: says nothing about the bundle"
    got, want = (
        Engine.load(tmp_path / "b", name, threads=1).segment(PICTURE, PROMPTS) for name in ("openvino", "onnxruntime")
    )
    assert relative(got.logits, want.logits) < (1e-4 if precision == "fp32" else made.limits.relative)
    assert np.abs(got.presence - want.presence).max() < 0.05


def test_a_profile_is_kept_to(traced, tmp_path):  # noqa: F811
    export(traced, tmp_path / "b", "fp32", RANGED)
    engine = Engine.load(tmp_path / "b", "openvino", threads=1)
    want = Engine.load(tmp_path / "b", "onnxruntime", threads=1)
    for prompts in (PROMPTS, PROMPTS * 3):  # at most 7 at once
        assert relative(engine.segment(PICTURE, prompts).logits, want.segment(PICTURE, prompts).logits) < 1e-4
    with pytest.raises(InputError, match="outside the profile"):
        engine.backend.encode_image(np.zeros((1, 3, 128, 128), np.float32))
