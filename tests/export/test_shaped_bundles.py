"""Every shape option in every precision: what is published answers a user at its smallest, usual and largest shape."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from native_fixtures import *  # noqa: F403
from native_fixtures import slow
from native_library import NativeEngine
from pico_exports import *  # noqa: F403
from pico_exports import RANGED, export, pico_limits

from digseg_engine import Engine
from digseg_engine.bundle import open_bundle
from digseg_engine.errors import VerificationError
from digseg_engine.runtime.backends import kinds
from digseg_engine.runtime.choice import check_golden
from digseg_engine.runtime.profile import Profile
from digseg_engine.runtime.source import open_source
from digseg_export import prove as proving
from digseg_export import publish as publishing
from digseg_export.verify import shaped_sample

SHAPES = {"imgsz": {"imgsz": "64x96"}, "batch": {"batch": 2}, "prompts": {"prompts": 5}, "profile": RANGED}


def case(shapes: str, precision: str):
    """Every option once and every precision once in each run; the other pairs with DIGSEG_TEST_SLOW=1."""
    marks = [pytest.mark.slow] if (shapes, precision) != ("profile", "fp16") else []
    if shapes != "profile" and precision != "fp16":
        marks.append(slow)
    return pytest.param(shapes, precision, marks=marks)


CASES = [case(shapes, precision) for shapes in SHAPES for precision in ("fp32", "fp16", "bf16", "int8")]


@pytest.mark.parametrize(("shapes", "precision"), CASES)
def test_the_published_bundle_answers_at_every_corner(traced, library, tmp_path, shapes, precision):
    done = export(traced, tmp_path / "b", precision, SHAPES[shapes])
    profile = Profile.from_json(open_bundle(tmp_path / "b").manifest["shapes"])
    source = open_source(tmp_path / "b")
    backend = kinds()["onnxruntime"].create(source)
    for end in ("min", "opt", "max"):
        sample = shaped_sample(traced[0], profile, end)
        asked = {axis: getattr(span, end) for axis, span in profile.ranges.items()}
        assert sample.image.shape == (asked["B"], 3, asked["H"], asked["W"])
        assert sample.token_mask.shape == (asked["K"], asked["L"])
        error, _ = check_golden(backend, proving.as_golden(sample, source.golden))
        assert error < pico_limits(precision).relative, end
    held, usual = source.golden, shaped_sample(traced[0], profile)
    assert np.array_equal(held.image, usual.image) and np.array_equal(held.token_ids, usual.token_ids)
    assert {a.at for a in done.answers} == {proving.GOLDEN, "the smallest shape", "the largest shape"}
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "b").iterdir()} == {(tmp_path / "b").stat().st_mode & 0o666}
    python_and_native_agree(library, tmp_path / "b", profile)


def python_and_native_agree(library, bundle: Path, profile: Profile) -> None:
    """Pictures and prompts of the smallest, usual and largest shape, and a single prompt: the same answers in Python and C."""
    words = [f"{colour} {shape}" for colour in ("red", "blue", "green") for shape in ("ring", "star", "disc")]
    with Engine.load(bundle, backend="onnxruntime") as python, NativeEngine(library, bundle) as native:
        assert native.verify().passed
        for end in ("min", "opt", "max"):
            height, width, prompts = (getattr(profile.ranges[axis], end) for axis in "HWK")
            picture = np.random.default_rng(height).integers(0, 255, (min(height, 256), min(width, 256), 3), np.uint8)
            for count in {1, min(prompts, len(words))}:
                ours, theirs = python.segment(picture, words[:count]), native.segment(picture, words[:count])
                assert theirs.masks.shape == ours.masks.shape == (count, *picture.shape[:2])
                assert np.ptp(ours.logits) > 0
                assert np.abs(ours.logits - theirs.logits).max() <= 1e-3 * np.abs(ours.logits).max(), (end, count)
                assert (ours.masks != theirs.masks).mean() <= 1e-3 and (
                    ours.label_map != theirs.label_map
                ).mean() <= 1e-3


def test_a_scrambled_golden_sample_is_not_published(traced, tmp_path, monkeypatch):
    write = publishing.write_arrays

    def scrambled(path, arrays, about):
        image = arrays["image"]
        write(path, {**arrays, "image": image.transpose(0, 2, 3, 1).reshape(image.shape)}, about)

    monkeypatch.setattr(publishing, "write_arrays", scrambled)
    with pytest.raises(VerificationError, match="does not hold the image that was written"):
        export(traced, tmp_path / "b", "fp32", SHAPES["imgsz"])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_fails_at_a_corner_is_not_published(traced, tmp_path, monkeypatch):
    sample = shaped_sample

    def outside(checkpoint, profile, end="opt"):
        if end == "max":  # one row of blocks more than the profile of the bundle has
            profile = Profile({**profile.ranges, "H": replace(profile.ranges["H"], max=profile.ranges["H"].max + 32)})
        return sample(checkpoint, profile, end)

    monkeypatch.setattr(publishing, "shaped_sample", outside)
    with pytest.raises(VerificationError, match="at the largest shape"):
        export(traced, tmp_path / "b", "fp32", SHAPES["profile"])
    assert list(tmp_path.iterdir()) == []


def test_wrong_graphs_and_no_backend_at_all_are_not_published(traced, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(proving, "kinds", dict)
        with pytest.raises(VerificationError, match="no backend answers the written bundle"):
            export(traced, tmp_path / "b", "fp32", {})
    fix = publishing.finish

    def another(room, manifest):  # the graph of other weights slips in after the last check
        other = json.loads(json.dumps(manifest))
        other["verification"]["limits"]["relative"] = 0.0
        fix(room, other)

    monkeypatch.setattr(publishing, "finish", another)
    with pytest.raises(VerificationError, match=r"wrong: error .* on the golden sample"):
        export(traced, tmp_path / "b", "fp32", {})
    assert list(tmp_path.iterdir()) == []
