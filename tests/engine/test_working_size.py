"""What a picture is worked at where nobody says."""

import json
import shutil

import numpy as np
import pytest
import torch

from digseg_engine import Engine
from digseg_engine.evaluation.predictors import bundle_predictor, choose_predictors, student_predictor
from digseg_engine.working_size import WorkingSize


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((40, 30), 256), ((256, 10), 256), ((10, 300), 300), ((384, 384), 384), ((385, 20), 384), ((4000, 3000), 384)],
)
def test_a_picture_is_worked_at_its_own_size_within_what_the_model_is_for(shape, expected):
    assert WorkingSize(256, 384).of(*shape) == expected
    assert WorkingSize(256, 256).of(*shape) == 256
    assert WorkingSize(256, 128).of(*shape) == 256  # no smaller than what it was trained for


def test_engine_evaluation_and_checkpoint_work_at_the_same_size(bundle, tiny):
    rng = np.random.default_rng(0)
    for side, expected in ((100, 256), (300, 300), (500, 384)):
        picture = rng.integers(0, 255, (side, side // 2, 3), np.uint8)
        encoding = Engine.load(bundle, "onnxruntime").encode(picture)
        assert encoding.size == expected
        by_default, said = (choose_predictors(bundle)[0][0], choose_predictors(bundle)[2])
        assert str(said) == "256 to 384 px"
        answer, same = by_default(picture, ["water"]), bundle_predictor(bundle, expected)(picture, ["water"])
        assert np.array_equal(answer.masks(), same.masks())
        ours, at_size = (
            student_predictor(tiny)(picture, ["water"]),
            student_predictor(tiny, expected)(picture, ["water"]),
        )
        assert all(torch.equal(a[1], b[1]) for a, b in zip(ours.strips(), at_size.strips()))


def test_a_bundle_without_a_largest_size_works_everything_at_its_usual_one(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["model"]["image_size_max"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    engine = Engine.load(tmp_path / "old", "onnxruntime")
    assert engine.encode(np.zeros((500, 400, 3), np.uint8)).size == 256
    assert engine.encode(np.zeros((500, 400, 3), np.uint8), size=320).size == 320
