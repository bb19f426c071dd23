"""The engine on the exported bundled model: right masks, independent prompts, no torch."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from digseg_engine import Engine, Segmentation
from digseg_engine.errors import BackendError, BundleError, InputError, UsageError
from digseg_engine.names import mask_names
from digseg_engine.runtime import backends
from digseg_engine.worlds.scenes import DOMAINS, scene

ROOT = __file__.rsplit("/tests/", 1)[0]


@pytest.fixture(scope="module")
def engine(bundle):
    return Engine.load(bundle, "onnxruntime")


@pytest.fixture(scope="module")
def example():
    return scene(1, "objects", 160, "demo")


@pytest.mark.parametrize("domain", DOMAINS)
def test_masks_match_the_truth(engine, domain):
    inter = union = 0
    for seed in range(5):
        one = scene(seed, domain, 256, "demo")
        names = one.names()
        result = engine.segment(one.image, names)
        for mask, name in zip(result.masks, names):
            inter, union = inter + (mask & one.mask(name)).sum(), union + (mask | one.mask(name)).sum()
    assert inter / union > 0.75


def test_shapes_and_fields(engine, example):
    picture = example.image[:, :100]  # 160 x 100
    result = engine.segment(picture, ["circle", "a zebra", "red"])
    assert isinstance(result, Segmentation) and result.prompts == ("circle", "a zebra", "red")
    assert result.masks.shape == (3, 160, 100) and result.masks.dtype == np.bool_
    assert result.label_map.shape == (160, 100) and result.label_map.max() <= 3
    assert result.scores.shape == (3,) and ((result.scores >= 0) & (result.scores <= 1)).all()
    assert np.array_equal(result.label_map > 0, result.masks.any(0))
    assert set(result.timings) == {"decode", "text", "fit", "encode", "presence", "masks", "label"}
    assert "onnxruntime" in result.backend and "fp16 weights widened to fp32" in result.backend


def test_adding_a_prompt_leaves_the_first_alone(engine, example):
    alone = engine.segment(example.image, ["red circle"]).logits
    more = engine.segment(example.image, ["red circle", "grass"]).logits
    largest = max(1.0, float(np.abs(alone).max()))
    assert np.abs(more[:1] - alone).max() <= 1e-5 * largest
    long = "something that is blue and a long way off, behind all of the other things"
    assert np.abs(engine.segment(example.image, [long, "red circle"]).logits[1] - alone[0]).max() <= 1e-4 * largest


def test_path_picture_and_array_give_the_same(engine, example, tmp_path):
    Image.fromarray(example.image).save(tmp_path / "a.png")
    wanted = engine.segment(example.image, ["star"]).logits
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(example.image)):
        assert np.array_equal(engine.segment(given, ["star"]).logits, wanted)


def test_threads_get_the_serial_answer(engine):
    pictures = [scene(seed, "objects", 64 + 16 * (seed % 3), "demo").image for seed in range(12)]
    prompts = [["red"], ["star", "blue"], ["circle", "a ring", "cross"]]
    jobs = [(picture, prompts[i % 3]) for i, picture in enumerate(pictures)]
    serial = [engine.segment(*job).logits for job in jobs]
    fresh = Engine.load(engine.bundle.folder, engine.backend.name)
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda job: fresh.segment(*job).logits, jobs))
    assert all(np.array_equal(a, b) for a, b in zip(serial, parallel))


def test_working_size_is_respected_and_bounded(engine, example):
    assert engine.segment(example.image, ["red"], size=64).logits.shape == (1, 32, 32)
    for size in (8, 5000):
        with pytest.raises(UsageError, match="working size"):
            engine.segment(example.image, ["red"], size=size)


def test_bad_input_is_one_clear_error(engine, example):
    for prompts in ([], [""], "red"):
        with pytest.raises(InputError):
            engine.segment(example.image, prompts)
    with pytest.raises(InputError, match="at most 77"):
        engine.segment(example.image, ["red " * 90])
    with pytest.raises(InputError, match="not found"):
        engine.segment("nowhere.png", ["red"])


def test_unknown_and_unusable_backends(bundle, monkeypatch):
    with pytest.raises(UsageError, match="unknown backend 'cuda'; expected auto or one of onnxruntime"):
        Engine.load(bundle, backend="cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"cannot run here.*pip install"):
        Engine.load(bundle, backend="onnxruntime")
    with pytest.raises(BackendError, match="no backend can run here"):
        Engine.load(bundle)
    assert not backends.kinds()["onnxruntime"].probe().usable
    with pytest.raises(BundleError, match="not found"):
        Engine.load("nowhere")


def test_context_manager(bundle, example):
    with Engine.load(bundle, backend="onnxruntime") as engine:
        assert engine.segment(example.image, ["red"]).masks.shape == (1, 160, 160)


def test_saved_files_say_the_same(engine, example, tmp_path):
    result = engine.segment(example.image, ["red", "Red!", "circle"])
    written = result.save(tmp_path / "new" / "folder", "photo")
    names = [path.name for path in written]
    assert names == ["photo.overlay.png", "photo.mask.red.png", "photo.mask.red-2.png", "photo.mask.circle.png",
                     "photo.labels.png", "photo.json"]  # fmt: skip
    for mask, path in zip(result.masks, written[1:4]):
        assert np.array_equal(np.asarray(Image.open(path)) > 127, mask)
    assert np.array_equal(np.asarray(Image.open(written[4])), result.label_map)
    body = json.loads(written[5].read_text())
    assert [m["prompt"] for m in body["masks"]] == ["red", "Red!", "circle"] and body["width"] == 160
    for mask, entry in zip(result.masks, body["masks"]):
        assert entry["area"] == pytest.approx(mask.mean(), abs=1e-6)
        if mask.any():
            left, top, right, bottom = entry["box"]
            assert mask[top:bottom, left:right].sum() == mask.sum()
    overlay = Image.open(written[0])
    assert overlay.width >= 320 and overlay.height > overlay.width


def test_mask_names_are_unique_file_names():
    assert mask_names(("a/b", "a b", "../..", "été", "?")) == ["a-b", "a-b-2", "prompt", "été", "prompt-2"]


BLOCKED = """
import sys
BLOCKED = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "skimage", "matplotlib", "accelerate",
           "typer", "click", "pydantic", "rich"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in BLOCKED:
            raise ImportError(f'{name} must not be imported here')
sys.meta_path.insert(0, Block())
from digseg_engine.cli import main
main()
"""


def test_segmenting_from_a_bundle_never_imports_torch(bundle, example, tmp_path):
    Image.fromarray(example.image).save(tmp_path / "a.png")
    command = [sys.executable, "-c", BLOCKED, "segment", str(tmp_path / "a.png"), "-p", "red", "-b", str(bundle)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.overlay.png").is_file()


def test_importing_the_package_is_light():
    heavy = "('torch', 'transformers', 'diffusers', 'onnxruntime')"
    code = f"import digseg_engine, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
