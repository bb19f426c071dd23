"""The C library gives the masks of the Python runtime, for every way to hand over a picture."""

import json
import shutil

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403
from PIL import Image as PillowImage
from profiled import fit_golden, write_shapes

from digseg_engine import Engine
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.worlds.scenes import scene

PROMPTS = ["red", "road", "nucleus", "something that is green"]


@pytest.fixture(scope="module")
def python(native_bundle):
    return Engine.load(native_bundle, backend="onnxruntime")


def same(native, python):
    union = (native.masks | python.masks).sum()
    iou = (native.masks & python.masks).sum() / union if union else 1.0
    assert iou >= 0.999
    assert np.abs(native.logits - python.logits).max() <= 1e-3
    assert np.abs(native.scores - python.scores).max() <= 1e-4
    assert (native.label_map != python.label_map).mean() <= 1e-3


@pytest.mark.parametrize(
    ("domain", "side", "cut"),
    [
        ("aerial", 128, (128, 128)),
        ("objects", 200, (200, 131)),
        ("microscopy", 64, (33, 64)),
        ("crops", 300, (257, 300)),
    ],
)
def test_masks_logits_scores_and_labels_match(native, python, domain, side, cut):
    rgb = np.ascontiguousarray(scene(7, domain, side, "demo").image[: cut[0], : cut[1]])
    same(native.segment(rgb, PROMPTS), python.segment(rgb, PROMPTS))


def test_one_row_high_pictures_and_other_working_sizes(native, python, library):
    from native_library import RunOptions

    rgb = np.ascontiguousarray(scene(3, "aerial", 96, "demo").image[:8])
    run = library.filled(RunOptions)
    run.size = 64
    same(native.segment(rgb, ["road"], run=run), python.segment(rgb, ["road"], size=64))


def test_every_pixel_format_is_the_same_picture(native, python):
    from native_library import BGR8, F32, RGBA8

    rgb = np.ascontiguousarray(scene(5, "aerial", 150, "demo").image)
    wanted = native.segment(rgb, ["road", "building"])
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    assert np.array_equal(native.segment(bgr, ["road", "building"], format=BGR8).logits, wanted.logits)
    wide = np.full((150, 200, 3), 77, np.uint8)
    wide[:, :150] = rgb
    assert np.array_equal(native.segment(wide, ["road", "building"], width=150, stride=600).logits, wanted.logits)
    rgba = np.dstack([rgb, np.random.default_rng(0).integers(0, 256, (150, 150), np.uint8)])
    same(
        native.segment(np.ascontiguousarray(rgba), PROMPTS, format=RGBA8),
        python.segment(PillowImage.fromarray(rgba), PROMPTS),
    )
    floats = np.ascontiguousarray(rgb, np.float32) / np.float32(255)
    assert np.abs(native.segment(floats, ["road", "building"], format=F32).logits - wanted.logits).max() < 0.5


def test_nv12_is_converted_with_the_matrix_asked_for(native):
    from native_library import ALL_PROMPTS, NV12

    run = native.run_options(flags=ALL_PROMPTS)  # "red" is not there in most of them
    # BT.601 video range: pure colours have known code values
    colours = {(255, 0, 0): (81, 90, 240), (0, 0, 255): (41, 240, 110), (255, 255, 255): (235, 128, 128)}
    for rgb, (y, u, v) in colours.items():
        frame = np.empty((96, 64), np.uint8)
        frame[:64], frame[64:, ::2], frame[64:, 1::2] = y, u, v
        flat = np.full((64, 64, 3), rgb, np.uint8)
        got = native.segment(frame, ["red"], width=64, height=64, format=NV12, run=run).logits
        same, other = (native.segment(colour, ["red"], run=run).logits for colour in (flat, 255 - flat))
        assert np.abs(got - same).max() < 0.1 * np.abs(other - same).max()


def test_golden_sample_passes_and_info_tells_what_runs(native, native_bundle):
    found = native.verify()
    manifest = json.loads((native_bundle / "manifest.json").read_text())
    assert found.passed == 1 and found.iou > 0.99 and found.relative < manifest["verification"]["limits"]["relative"]
    info = json.loads(native.info())
    assert info["image_size"] == manifest["model"]["image_size"] and "onnxruntime" in info["backend"]
    from digseg_engine.bundle import open_bundle

    assert info["sha256"] == open_bundle(native_bundle).digest


def test_a_saved_vocabulary_answers_like_free_text(native, library, native_bundle, tmp_path):
    from native_library import NativeEngine, NativeError

    rgb = np.ascontiguousarray(scene(2, "aerial", 128, "demo").image)
    prompts = ["road", "trees by the long grey road behind the building"]
    native.save_vocabulary(prompts, tmp_path / "v.safetensors")
    wanted = native.segment(rgb, prompts).logits
    with NativeEngine(library, native_bundle, vocabulary=str(tmp_path / "v.safetensors").encode()) as fixed:
        assert np.abs(fixed.segment(rgb, prompts).logits - wanted).max() <= 1e-4
        assert '"vocabulary": 2' in fixed.info()
        assert fixed.segment(rgb, ["water"]).masks.shape == (1, 128, 128)  # other prompts still work
    body = (tmp_path / "v.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(body[:-40])
    with pytest.raises(NativeError, match="corrupt"):
        NativeEngine(library, native_bundle, vocabulary=str(tmp_path / "cut.safetensors").encode())


def test_errors_have_a_status_and_say_what_to_do(native, library, native_bundle, tmp_path):
    from native_library import CANCEL, NativeEngine, NativeError, RunOptions

    rgb = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(NativeError, match=r"invalid argument: prompt 'red red.* has 92 tokens, at most 77 fit"):
        native.segment(rgb, ["red " * 90])
    run = library.filled(RunOptions)
    run.flags = 1
    assert native.segment(rgb, ["red " * 90], run=run).masks.shape == (1, 16, 16)
    run = library.filled(RunOptions)
    run.labels = 7
    with pytest.raises(NativeError, match=r"invalid argument: options\.labels is 7; expected DIGSEG_LABELS_PARTS"):
        native.segment(rgb, ["red"], run=run)
    run = library.filled(RunOptions)
    run.cancel = CANCEL(lambda user: 1)
    with pytest.raises(NativeError, match="cancelled"):
        native.segment(rgb, ["red"], run=run)
    with pytest.raises(NativeError, match="not found: bundle"):
        NativeEngine(library, tmp_path / "nowhere")
    with pytest.raises(NativeError, match=f"expected the path of a directory .*assets/{SHIPPED_BUNDLE.name}"):
        NativeEngine(library, "digseg-tiny-fp16")  # a name that Python knows
    with pytest.raises(NativeError, match="unknown backend 'quick'"):
        NativeEngine(library, native_bundle, backend=b"quick")
    with pytest.raises(NativeError, match=r"unavailable: .*onnxruntime_library"):
        NativeEngine(library, native_bundle, onnxruntime_library=b"/nowhere/libonnxruntime.so")


def test_logs_go_to_the_engines_own_callback(library, native_bundle):
    from native_library import LOG, NativeEngine

    lines = []
    with NativeEngine(library, native_bundle, log=LOG(lambda user, level, text: lines.append((level, text.decode())))):
        assert any(level == 1 and "backend onnxruntime" in text for level, text in lines)


def test_a_shape_profile_is_kept(native, library, native_bundle, tmp_path):
    from native_library import NativeEngine, NativeError, RunOptions

    shutil.copytree(native_bundle, tmp_path / "b")
    side = json.loads(native.info())["image_size"]
    shapes = {axis: (size, size, size) for axis, size in (("B", 1), ("K", 3), ("L", 16), ("H", side), ("W", side))}
    write_shapes(tmp_path / "b", shapes)
    fit_golden(tmp_path / "b", shapes)
    rgb = np.ascontiguousarray(scene(4, "aerial", side, "demo").image)
    with NativeEngine(library, tmp_path / "b") as engine:
        got, wanted = engine.segment(rgb, PROMPTS), native.segment(rgb, PROMPTS)
        assert np.abs(got.logits - wanted.logits).max() <= 1e-3  # four prompts in two calls of three
        assert engine.segment(np.ascontiguousarray(rgb[: side // 2]), ["road"]).logits.shape == wanted.logits[:1].shape
        run = library.filled(RunOptions)
        run.size = 2 * side
        with pytest.raises(NativeError, match=f"exported for at most {side}"):
            engine.segment(rgb, ["road"], run=run)
        with pytest.raises(NativeError, match="at most 16"):
            engine.segment(rgb, ["red " * 30])
