"""The JavaScript module in Node, with the real runtimes: masks, label maps and figures are Python's."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from web_cases import EXAMPLES, ROOT, asked, has, needs, room_of, run_node

from digseg_engine import Engine
from digseg_engine.errors import InputError
from digseg_engine.runtime.rle import decode

pytestmark = needs("onnxruntime-node", "onnxruntime-web")
PROMPTS = ["road", "water", "building", "a zebra", "some trees"]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    packages = [name for name in ("onnxruntime-node", "onnxruntime-web", "sharp") if has(name)]
    return room_of(tmp_path_factory.mktemp("node"), *packages)


@pytest.fixture(scope="module")
def engine(bundle):
    with Engine.load(bundle, "onnxruntime", threads=1) as opened:
        yield opened


def pixels(name):
    return np.asarray(Image.open(EXAMPLES / f"{name}.png").convert("RGB"))


def iou(one, other):
    return 1.0 if not (one | other).any() else (one & other).sum() / (one | other).sum()


def compare(found, wanted):
    """A record of ours with masks, and what Python says."""
    assert "error" not in found, found
    record = json.loads(json.dumps(wanted.as_dict()))
    same = ("format", "width", "height", "model", "working_size", "threshold", "label_rule", "against", "all_prompts")
    assert {key: found[key] for key in same} == {key: record[key] for key in same}
    for k, (mask, ours) in enumerate(zip(found["masks"], record["masks"], strict=True)):
        theirs = np.zeros(wanted.label_map.shape, bool) if mask["rle"] is None else decode(mask["rle"])
        assert iou(theirs, wanted.mask(k)) >= 0.999
        assert {key: mask[key] for key in ("prompt", "label", "there")} == {
            key: ours[key] for key in ("prompt", "label", "there")
        }
        assert mask["area"] == pytest.approx(ours["area"], abs=1e-3) and (mask["box"] is None) == (ours["box"] is None)
        for key in ("score", "presence"):
            assert mask[key] == (None if ours[key] is None else pytest.approx(ours[key], abs=2e-3)), key
    assert (np.array(found["labels"]).reshape(wanted.label_map.shape) == wanted.label_map).mean() >= 0.999


@pytest.mark.parametrize("backend", ["cpu", "wasm"])
def test_masks_are_pythons(room, bundle, engine, backend):
    cases = [
        ("aerial", PROMPTS, {}),
        ("cells", ["nucleus", "cell"], {"size": 128}),
        ("shapes", ["red ring", "anything blue"], {}),
        ("crops", ["weed", "soil"], {"threshold": 0.3, "labels": "strongest"}),
        ("aerial", ["road", "a zebra"], {"all_prompts": True}),
        ("aerial", ["road"], {"against": ["road", "building"]}),
    ]
    spelled = [
        {
            **{k: v for k, v in options.items() if k != "all_prompts"},
            **({"allPrompts": True} if "all_prompts" in options else {}),
        }
        for *_, options in cases
    ]
    tall = pixels("aerial")[:, 60:130]
    answer = asked(room, {"bundle": str(bundle), "options": {"backend": backend}, "pictures": [
        *({"pixels": pixels(name), "prompts": prompts, "options": options}
          for (name, prompts, _), options in zip(cases, spelled)),
        {"pixels": tall, "prompts": PROMPTS[:2], "twice": True}]})  # fmt: skip
    assert backend in answer["backend"] and answer["fallbacks"] == []
    for (name, prompts, options), found in zip(cases, answer["results"]):
        compare(found, engine.segment(pixels(name), prompts, **options))
    compare(answer["results"][-1], engine.segment(tall, PROMPTS[:2]))
    assert "encode" not in answer["results"][-1]["seconds"] and "encode" in answer["results"][0]["seconds"]


def test_a_backend_that_answers_wrongly_is_not_used(room, bundle, engine):
    picture = {"pixels": pixels("aerial"), "prompts": PROMPTS}
    answer = asked(room, {"bundle": str(bundle), "plant": ["cpu"], "pictures": [picture]})
    assert "wasm" in answer["backend"] and [row["right"] for row in answer["tried"]] == [False, True]
    assert (
        answer["fallbacks"][0].startswith("cpu: wrong: error")
        and answer["fallbacks"][0] in answer["results"][0]["notes"]
    )
    compare(answer["results"][0], engine.segment(pixels("aerial"), PROMPTS))
    for plant in (["cpu"], ["cpu", "wasm"]):
        options = {"backend": "cpu"} if len(plant) == 1 else {}
        failed = asked(room, {"bundle": str(bundle), "plant": plant, "options": options})["error"]
        assert failed["name"] == "BackendError" and "wrong: error" in failed["message"]


def test_what_cannot_be_asked(room, bundle, engine):
    small = np.zeros((7, 20, 3), np.uint8)
    answer = asked(room, {"bundle": str(bundle), "options": {"backend": "cpu"}, "pictures": [
        {"pixels": small, "prompts": ["a"]}, {"pixels": pixels("aerial"), "prompts": []},
        {"pixels": pixels("aerial"), "prompts": ["a"], "options": {"size": 8}},
        {"pixels": pixels("aerial"), "prompts": ["a"], "options": {"threshold": 1}},
        {"pixels": pixels("aerial"), "prompts": ["a"], "options": {"labels": "most"}},
        {"pixels": pixels("aerial"), "prompts": ["a " * 90]}]})  # fmt: skip
    errors = [each["error"] for each in answer["results"]]
    assert [error["name"] for error in errors] == ["InputError", "InputError", *["UsageError"] * 3, "InputError"]
    for error, words in zip(errors, ["expected at least 8x8", "no prompt given", "32 to 4096", "between 0 and 1", "label rule",
                                     "at most 77 fit"]):  # fmt: skip
        assert words in error["message"]
    unknown = asked(room, {"bundle": str(bundle), "options": {"backend": "cuda"}})["error"]
    assert unknown["message"].startswith('unknown backend "cuda"; expected auto or one of cpu, wasm')


@pytest.mark.parametrize("backend", ["cpu", "wasm"])
@pytest.mark.parametrize("kind", ["full", "labels_only"])
def test_a_fixed_vocabulary(room, folded, with_presence, kind, backend):
    folder = getattr(folded, kind)
    names = list(reversed(folded.names))
    with Engine.load(folder, "onnxruntime", threads=1) as ours:
        pictures = with_presence.pictures
        answer = asked(room, {"bundle": str(folder), "options": {"backend": backend}, "pictures": [
            *({"pixels": picture, "prompts": None} for picture in pictures),
            *({"pixels": picture, "prompts": names} for picture in pictures), {"pixels": pictures[0], "prompts": ["a lamp post"]},
            {"pixels": pictures[0], "prompts": None, "options": {"against": ["x"]}}]})  # fmt: skip
        assert answer["vocabulary"] == list(folded.names)
        for picture, found in zip(pictures, answer["results"]):
            compare(found, ours.segment(picture))
        *_, strange, against = answer["results"]
        for picture, found in zip(pictures, answer["results"][len(pictures) :]):
            compare(found, ours.segment(picture, names))
        with pytest.raises(InputError) as error:
            ours.segment(pictures[0], ["a lamp post"])
        assert strange["error"]["message"].replace('"', "'") == str(error.value)
        assert "contrast prompts cannot join them" in against["error"]["message"]


def test_shapes_that_a_bundle_was_exported_for(room, nano_models, tmp_path):
    from nano_models import with_profile

    wide = {"B": (2, 2, 3), "K": (2, 3, 4), "L": (8, 8, 16), "H": (32, 64, 64), "W": (96, 128, 128)}
    folder = with_profile(nano_models.fp32, tmp_path / "wide", **wide)
    prompts = [f"thing {i}" for i in range(9)]
    with Engine.load(folder, "onnxruntime", threads=1) as ours:
        shapes = [(64, 64), (90, 120), (30, 200), (120, 90)]
        pictures = [np.random.default_rng(i).integers(0, 256, (*shape, 3), np.uint8) for i, shape in enumerate(shapes)]
        answer = asked(room, {"bundle": str(folder), "options": {"backend": "cpu"}, "pictures": [
            *({"pixels": each, "prompts": prompts[: 9 - 4 * (i % 3)]} for i, each in enumerate(pictures)),
            {"pixels": pictures[0], "prompts": ["a"], "options": {"size": 256}}]})  # fmt: skip
        for i, (picture, found) in enumerate(zip(pictures, answer["results"])):
            compare(found, ours.segment(picture, prompts[: 9 - 4 * (i % 3)]))
        assert "larger than the shapes" in answer["results"][-1]["error"]["message"]


@needs("sharp")
def test_the_example_prints_pythons_areas(room, bundle, engine, tmp_path):
    """Files as people have them, decoded by sharp there and by Pillow here: shares of the picture to 0.1 %."""
    shutil.copy(EXAMPLES / "node" / "example.mjs", room / "example.mjs")
    aerial = Image.open(EXAMPLES / "aerial.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    aerial.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=90, exif=exif)
    aerial.resize((1100, 700)).save(tmp_path / "large.jpg", quality=85)
    aerial.convert("L").save(tmp_path / "grey.png")
    clear = aerial.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(aerial.size))
    clear.save(tmp_path / "clear.png")
    aerial.save(tmp_path / "p.webp", quality=90)
    photos = [EXAMPLES / "aerial.png", EXAMPLES / "crops.png", *sorted(tmp_path.iterdir())]
    for photo in photos:
        done = run_node("example.mjs", photo, *PROMPTS, "--json", "--bundle", bundle, cwd=room)
        assert done.returncode == 0, done.stderr
        wanted = engine.segment(photo, PROMPTS)
        record = json.loads(done.stdout)
        assert [record["width"], record["height"]] == [wanted.label_map.shape[1], wanted.label_map.shape[0]]
        found = np.array([mask["area"] for mask in record["masks"]])
        assert np.abs(found - wanted.areas).max() <= 1e-3, photo.name
    lines = run_node("example.mjs", EXAMPLES / "aerial.png", "road", "a zebra", "--bundle", bundle, cwd=room).stdout
    area = engine.segment(EXAMPLES / "aerial.png", ["road"]).areas[0]
    assert lines == f"road: {100 * area:.2f} %\na zebra: not there\n"


@needs("sharp")
def test_the_example_says_in_one_line_what_is_wrong(room, bundle, tmp_path):
    shutil.copy(EXAMPLES / "node" / "example.mjs", room / "example.mjs")
    assert run_node("example.mjs", cwd=room).returncode == 2
    for words, code, said in [(("no.png", "road"), 1, "no.png"), ((EXAMPLES / "aerial.png", " "), 2, "is empty"),
                              ((EXAMPLES / "aerial.png", "road", "--bundle", tmp_path), 1, "manifest.json is missing"),
                              ]:  # fmt: skip
        done = run_node("example.mjs", *words, *(() if "--bundle" in words else ("--bundle", bundle)), cwd=room)
        assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_example_names_the_packages_that_are_tested():
    ours = json.loads((ROOT / "digseg_engine" / "js" / "package.json").read_text())["peerDependencies"]
    example = json.loads((EXAMPLES / "node" / "package.json").read_text())["dependencies"]
    assert example["onnxruntime-node"] == ours["onnxruntime-node"] == ours["onnxruntime-web"]
