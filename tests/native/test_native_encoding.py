"""The C library in two steps: a picture is encoded once and asked again; presence; contrast prompts."""

import json
import shutil
import threading

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403
from profiled import fit_golden, write_shapes
from readout import add_readout

from digseg_engine import Engine
from digseg_engine.contract import ABSENT, ENCODING, PRESENCE
from digseg_engine.worlds.scenes import scene

LONG = ("trees by the long grey road behind the building", "a small dark roof beside the red and white tall house wall")
PROMPTS = ["road", "building", "water", "trees", "a road", "something that is green", "field", "roof", *LONG]


def picture(side=150, rows=131):
    return np.ascontiguousarray(scene(5, "aerial", side, "demo").image[:rows])


@pytest.fixture(scope="module")
def gated(library, native_bundle, tmp_path_factory):
    """An engine over a bundle with a presence graph."""
    from native_library import NativeEngine

    folder = tmp_path_factory.mktemp("gated") / "b"
    shutil.copytree(native_bundle, folder)
    add_readout(folder)
    with NativeEngine(library, folder) as engine:
        yield engine


@pytest.mark.parametrize("engine", ["native", "gated"])
@pytest.mark.parametrize("size", [0, 64, 100])
def test_two_steps_answer_as_one_bit_for_bit(request, engine, size):
    engine, rgb = request.getfixturevalue(engine), picture()
    encoding = engine.encode(rgb, run=engine.run_options(size=size))
    for prompts in (PROMPTS[:1], PROMPTS, PROMPTS[::-1], PROMPTS[:1]):
        wanted = engine.segment(rgb, prompts, run=engine.run_options(size=size))
        assert engine.segment(encoding, prompts).equals(wanted)
        assert engine.segment(encoding, prompts, run=engine.run_options(size=size)).equals(wanted)


def test_every_pixel_format_is_encoded(native):
    from native_library import BGR8, NV12

    rgb, frame = picture(), np.random.default_rng(0).integers(16, 236, (96, 64), np.uint8)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    assert native.segment(native.encode(bgr, format=BGR8), PROMPTS).equals(native.segment(rgb, PROMPTS))
    nv12 = {"width": 64, "height": 64, "format": NV12}
    assert native.segment(native.encode(frame, **nv12), PROMPTS).equals(native.segment(frame, PROMPTS, **nv12))


def test_pixels_are_not_kept(native):
    rgb = picture()
    wanted = native.segment(rgb, PROMPTS)
    encoding = native.encode(rgb)
    rgb[:] = 0
    assert native.segment(encoding, PROMPTS).equals(wanted)


def test_an_encoding_is_as_large_as_the_contract_says(native, native_bundle):
    model = json.loads((native_bundle / "manifest.json").read_text())["model"]
    assert ENCODING.axes == ("B", "M", "H/s", "W/s")
    rows, columns = 64 // model["stride"], 96 // model["stride"]
    encoding = native.encode(picture(96, 64), run=native.run_options(size=96))
    assert encoding.nbytes == 4 * model["encoding"] * rows * columns  # a CPU keeps float32
    assert native.lib.digseg_encoding_bytes(None) == 0


def test_another_engines_encoding_is_refused(native, library, native_bundle):
    from native_library import NativeEngine, NativeError

    with NativeEngine(library, native_bundle) as other:
        encoding = other.encode(picture())
    for _ in range(2):  # also where the engine is gone and its memory used again
        with pytest.raises(
            NativeError, match="invalid argument: the encoding was made by another engine; encode the picture"
        ):
            native.segment(encoding, PROMPTS)
        with NativeEngine(library, native_bundle) as third, pytest.raises(NativeError, match="another engine"):
            third.segment(encoding, PROMPTS)


def test_another_size_is_refused(native):
    from native_library import NativeError

    encoding = native.encode(picture(), run=native.run_options(size=64))
    with pytest.raises(NativeError, match=r"invalid argument: options\.size is 96, the picture was encoded at 64"):
        native.segment(encoding, PROMPTS, run=native.run_options(size=96))
    for size in (1, 8192):
        with pytest.raises(NativeError, match="working size must be"):
            native.encode(picture(), run=native.run_options(size=size))


def test_both_steps_can_be_cancelled(native):
    from native_library import CANCEL, NativeError

    run, encoding = native.run_options(cancel=CANCEL(lambda user: 1)), native.encode(picture())
    with pytest.raises(NativeError, match="cancelled"):
        native.encode(picture(), run=run)
    with pytest.raises(NativeError, match="cancelled"):
        native.segment(encoding, PROMPTS, run=run)


def test_many_threads_ask_about_one_encoding(native):
    encoding, wanted, found = native.encode(picture()), native.segment(picture(), PROMPTS), []

    def ask():
        found.extend(native.segment(encoding, PROMPTS).equals(wanted) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20


def test_what_is_not_there_is_empty_and_the_others_are_as_ever(gated):
    from native_library import ALL_PROMPTS

    rgb = picture()
    found, everything = (
        gated.segment(rgb, PROMPTS),
        gated.segment(rgb, PROMPTS, run=gated.run_options(flags=ALL_PROMPTS)),
    )
    assert 1 < found.there.sum() < len(PROMPTS) and everything.there.all()
    assert (
        np.array_equal(found.presence, everything.presence) and found.presence.min() >= 0 and found.presence.max() <= 1
    )
    assert found.presence[found.there].min() > found.presence[~found.there].max()
    assert np.array_equal(found.logits[found.there], everything.logits[found.there])
    assert np.array_equal(found.masks[found.there], everything.masks[found.there])
    assert np.array_equal(found.scores[found.there], everything.scores[found.there])
    away = ~found.there
    assert (found.logits[away] == ABSENT).all() and not found.masks[away].any() and not found.scores[away].any()
    assert (
        everything.masks[away].any(axis=(1, 2)).any() and not np.isin(found.label_map, np.flatnonzero(away) + 1).any()
    )
    low = gated.run_options(threshold=-100.0)  # under the logit of what is not there
    assert not gated.segment(rgb, PROMPTS, run=low).masks[away].any()


def test_a_prompt_is_there_or_not_whatever_else_is_asked(gated):
    rgb = picture()
    together, encoding = gated.segment(rgb, PROMPTS), gated.encode(rgb)
    for k, prompt in enumerate(PROMPTS):
        alone = gated.segment(encoding, [prompt])
        assert alone.there[0] == together.there[k] and abs(alone.presence[0] - together.presence[k]) <= 1e-5
        assert alone.logits.shape[1:] == together.logits.shape[1:]  # also where nothing was decoded
        assert np.abs(alone.logits[0] - together.logits[k]).max() <= 1e-3


def test_presence_is_verified_and_told(gated):
    assert gated.verify().passed == 1 and json.loads(gated.info())["presence"] is True


def test_a_bundle_without_readout_decodes_everything(native, native_bundle):
    if (native_bundle / PRESENCE.file).exists():
        pytest.skip("this bundle has a readout")
    found = native.segment(picture(), PROMPTS)
    assert found.there.all() and (found.presence == -1).all() and json.loads(native.info())["presence"] is False


@pytest.mark.parametrize("damage", ["other presence in the golden sample", "no presence in the golden sample"])
def test_presence_too_is_held_to_the_golden_sample(library, native_bundle, tmp_path, damage):
    from native_library import NativeEngine, NativeError
    from profiled import list_again
    from safetensors.numpy import load_file, save_file

    shutil.copytree(native_bundle, tmp_path / "b")
    add_readout(tmp_path / "b")
    path = tmp_path / "b" / "golden.safetensors"
    arrays = load_file(path)
    presence = arrays.pop("presence")
    save_file(arrays if damage.startswith("no") else {**arrays, "presence": presence + np.float32(1)}, path)
    list_again(tmp_path / "b", path.name)
    with pytest.raises(NativeError, match=r"corrupt|wrong on the golden sample"):
        NativeEngine(library, tmp_path / "b", backend=b"onnxruntime")


def test_a_profile_splits_and_fills_up_questions_about_an_encoding(library, gated, native_bundle, tmp_path):
    from native_library import NativeEngine

    shutil.copytree(native_bundle, tmp_path / "b")
    add_readout(tmp_path / "b")
    side = json.loads(gated.info())["image_size"]
    shapes = {axis: (size, size, size) for axis, size in (("B", 2), ("K", 3), ("L", 32), ("H", side), ("W", side))}
    write_shapes(tmp_path / "b", shapes)
    fit_golden(tmp_path / "b", shapes)
    rgb = np.ascontiguousarray(scene(4, "aerial", side, "demo").image)
    with NativeEngine(library, tmp_path / "b") as engine:
        encoding = engine.encode(rgb)
        for prompts in (PROMPTS[:1], PROMPTS[:4], PROMPTS):
            got, wanted = engine.segment(encoding, prompts), gated.segment(rgb, prompts)
            assert np.array_equal(got.there, wanted.there) and np.abs(got.presence - wanted.presence).max() <= 1e-3
            assert np.abs(got.logits - wanted.logits).max() <= 1e-3
            assert engine.segment(rgb, prompts).equals(got)


def test_contrast_prompts_compete_and_are_not_returned(native, native_bundle):
    rgb, asked, against = picture(), PROMPTS[:3], [*PROMPTS, "trees", "field"]
    free, got = native.segment(rgb, asked), native.segment(native.encode(rgb), asked, run=native.run_options(against))
    assert got.masks.shape == free.masks.shape and np.array_equal(got.logits, free.logits)
    assert not (got.masks & ~free.masks).any() and (free.masks & ~got.masks).any()  # they only take away
    wanted = Engine.load(native_bundle, backend="onnxruntime").segment(rgb, asked, against=against)
    assert (got.masks != wanted.masks).mean() <= 1e-3 and np.abs(got.scores - wanted.scores).max() <= 1e-3
    assert (got.label_map != wanted.label_map).mean() <= 1e-3
    alone = native.segment(rgb, asked, run=native.run_options(asked))  # those asked about themselves are left out
    assert alone.equals(free)


def test_contrast_prompts_that_are_not_there_take_nothing(gated):
    from native_library import ALL_PROMPTS

    rgb, there = picture(), gated.segment(picture(), PROMPTS).there
    asked = [prompt for prompt, is_there in zip(PROMPTS, there) if is_there]
    away = [prompt for prompt, is_there in zip(PROMPTS, there) if not is_there]
    free = gated.segment(rgb, asked, run=gated.run_options(flags=ALL_PROMPTS))
    assert gated.segment(rgb, asked, run=gated.run_options(away)).equals(free)
    everything = gated.segment(rgb, asked, run=gated.run_options(away, flags=ALL_PROMPTS))
    assert (free.masks & ~everything.masks).any()


@pytest.mark.parametrize("against", [[" "], ["red " * 90], ["road"] * 1025])
def test_contrast_prompts_are_checked(native, against):
    from native_library import NativeError

    with pytest.raises(NativeError, match="invalid argument"):
        native.segment(picture(), PROMPTS, run=native.run_options(against))
