"""Folded bundles in C: names of the bundle, no masks where none are wanted, refusals, verification, the camera."""

import json
import shutil

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403
from programs import run_program
from safetensors.numpy import load_file, save_file

from digseg_engine.bundle import MANIFEST, finish


def picture():
    rng = np.random.default_rng(7)
    return (rng.integers(0, 256, 3) * rng.uniform(0.3, 1, (32, 48, 1))).astype(np.uint8)


@pytest.fixture(scope="module", params=["full", "labels_only"])
def engine(request, library, folded):
    from native_library import NativeEngine

    with NativeEngine(library, getattr(folded, request.param)) as opened:
        yield opened


def test_the_names_and_the_golden_sample(engine, folded):
    assert engine.vocabulary() == list(folded.names)
    told = json.loads(engine.info())
    assert told["folded"] is True and told["vocabulary"] == len(folded.names)
    verified = engine.verify()
    assert verified.passed == 1 and verified.iou > 0.999 and verified.relative < 1e-3


def test_without_masks_the_rest_is_the_same(engine):
    from native_library import NO_MASKS

    whole, bare = engine.segment(picture()), engine.segment(picture(), run=engine.run_options(flags=NO_MASKS))
    assert bare.masks is None and whole.masks.any()
    assert np.array_equal(whole.label_map, bare.label_map) and np.array_equal(whole.scores, bare.scores)


def test_an_open_bundle_keeps_no_masks_either(native):
    from native_library import NO_MASKS

    whole = native.segment(picture(), ["road", "water"])
    bare = native.segment(picture(), ["road", "water"], run=native.run_options(flags=NO_MASKS))
    assert (
        bare.masks is None
        and np.array_equal(whole.label_map, bare.label_map)
        and np.array_equal(whole.scores, bare.scores)
    )
    assert native.vocabulary() == [] and json.loads(native.info())["folded"] is False


@pytest.mark.parametrize("what", ["tokenize", "save", "name", "open"])
def test_what_needs_text_is_refused(engine, library, folded, tmp_path, what):
    from native_library import NativeEngine, NativeError

    calls = {
        "tokenize": lambda: engine.tokenize("road"),
        "save": lambda: engine.save_vocabulary(["road"], tmp_path / "v"),
        "name": lambda: engine.segment(picture(), ["a stranger"]),
        "open": lambda: NativeEngine(library, folded.full, vocabulary=b"somewhere").__enter__(),
    }
    with pytest.raises(NativeError, match="vocabulary") as told:
        calls[what]()
    assert told.value.status == "invalid argument" and "\n" not in told.value.text


def test_a_threshold_needs_logits(library, folded):
    from native_library import NativeEngine, NativeError

    with NativeEngine(library, folded.full) as engine:
        some = engine.segment(picture(), run=engine.run_options(threshold=2.0))
        assert some.masks.sum() < engine.segment(picture()).masks.sum()
    with NativeEngine(library, folded.labels_only) as engine, pytest.raises(NativeError, match="--labels-only"):
        engine.segment(picture(), run=engine.run_options(threshold=2.0))


@pytest.mark.parametrize("kind", ["full", "labels_only"])
def test_a_map_that_is_not_the_golden_one_is_refused(library, folded, tmp_path, kind):
    from native_library import NativeEngine, NativeError

    copy = shutil.copytree(getattr(folded, kind), tmp_path / "b")
    arrays, manifest = load_file(copy / "golden.safetensors"), json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).unlink()
    save_file({**arrays, "label_map": np.roll(arrays["label_map"], 2, 1)}, copy / "golden.safetensors")
    finish(copy, manifest)
    with pytest.raises(NativeError, match="share of the label map"):
        NativeEngine(library, copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(names=[v["names"][0]] * 2), "a name twice"),
        (lambda v: v.update(names=[]), "0 names"),
        (lambda v: v.update(rule="smallest"), "the rule"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(library, folded, tmp_path, change, words):
    from native_library import NativeEngine, NativeError

    copy = shutil.copytree(folded.full, tmp_path / "b")
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest["vocabulary"])
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(NativeError, match=words) as told:
        NativeEngine(library, copy)
    assert told.value.status == "corrupt"


def test_the_camera_reads_the_label_map(installed, environment, folded, native_bundle):
    camera = installed / "programs" / "camera"
    done = run_program([camera, folded.labels_only, "2"], env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("frame ") == 2 and any(name in done.stdout for name in folded.names)
    done = run_program([camera, native_bundle, "2"], env=environment)
    assert done.returncode == 2 and "is not folded" in done.stderr
