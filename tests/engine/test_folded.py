"""Engines of folded bundles: names instead of prompts, and the answers of the open bundle that they were made from."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.bundle import MANIFEST, finish, open_bundle
from digseg_engine.errors import BackendError, BundleError, InputError, UsageError
from digseg_engine.images import fit
from digseg_engine.runtime.backends import BackendKind, Usable
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.choice import check_golden, create, named
from digseg_engine.runtime.source import open_source
from digseg_engine.vocabulary import Vocabulary, read_vocabulary


@pytest.fixture(scope="module")
def engines(folded):
    return {name: Engine.load(getattr(folded, name), "onnxruntime") for name in ("full", "labels_only", "open")}


@pytest.fixture
def asked(folded, with_presence):
    return with_presence.prompts, with_presence.pictures[0]


def test_there_is_neither_tokenizer_nor_text_encoder(folded):
    manifest = open_bundle(folded.full).manifest
    graphs = {"image_encoder.onnx", "image_encoder.data", "labels.onnx", "labels.data", "labels.fp32.onnx"}
    assert set(manifest["files"]) == graphs | {"golden.safetensors", "precision.json", "sbom.cdx.json"}
    assert manifest["vocabulary"]["names"] == list(folded.names) and manifest["vocabulary"]["rule"] == "strongest"
    assert list(manifest["contract"]["graphs"]) == ["image_encoder", "labels"]
    sizes = [
        sum(file["size"] for file in open_bundle(path).manifest["files"].values())
        for path in (folded.full, folded.open)
    ]
    assert sizes[0] < sizes[1]


def test_the_names_are_the_vocabulary(engines, folded):
    assert engines["full"].vocabulary == engines["labels_only"].vocabulary == folded.names
    assert engines["open"].vocabulary == ()


def test_the_answer_is_that_of_the_open_bundle(engines, asked):
    prompts, _ = asked
    turned_away = 0
    for picture in (each for each in open_pictures(asked)):
        found, wanted = engines["full"].segment(picture), engines["open"].segment(picture, prompts, labels="strongest")
        assert np.abs(found.logits - wanted.logits).max() < 1e-3 and np.array_equal(found.there, wanted.there)
        assert (found.masks == wanted.masks).mean() > 0.9999 and (found.label_map == wanted.label_map).mean() > 0.999
        assert np.allclose(found.scores, wanted.scores, atol=1e-3) and np.allclose(
            found.presence, wanted.presence, atol=1e-4
        )
        assert found.about.rules.labels == "strongest" and found.masks.any()
        turned_away += int((~found.there).sum())
    assert turned_away


def open_pictures(asked):
    rng = np.random.default_rng(7)
    return [
        asked[1],
        *((rng.integers(0, 256, 3) * rng.uniform(0.3, 1, (40, 64, 1))).astype(np.uint8) for _ in range(2)),
    ]


def test_some_names_answer_as_they_do_among_all(engines, folded, asked):
    whole = engines["full"].segment(asked[1])
    some = [folded.names[4], folded.names[1]]
    found = engines["full"].segment(asked[1], some)
    assert found.prompts == tuple(some) and np.array_equal(found.logits, whole.logits[[4, 1]])
    assert np.array_equal(found.masks, whole.masks[[4, 1]])
    whole, found = (engines["labels_only"].segment(asked[1], names) for names in (None, some))
    assert np.array_equal(found.label_map == 1, whole.label_map == 5)
    assert np.array_equal(found.label_map == 2, whole.label_map == 2) and found.label_map.max() <= 2


def test_the_label_map_alone_is_the_graphs_own(engines, asked, tmp_path):
    engine, full = engines["labels_only"], engines["full"]
    result = engine.segment(asked[1])
    same = full.label_map(pixels_of(asked[1], engine))[0]
    side = round(engine.image_size * asked[1].shape[0] / asked[1].shape[1])
    assert np.array_equal(result.label_map, nearest(same[:side], asked[1].shape[:2]))
    assert len(np.unique(result.label_map)) > 1
    for k in range(len(result.prompts)):
        assert np.array_equal(result.mask(k), result.label_map == k + 1)
    assert np.array_equal(result.masks.sum((1, 2)), result.answer.pixels)
    files = result.save(tmp_path, "x")
    assert len(files) == 3 + len(result.prompts)
    body = json.loads((tmp_path / "x.json").read_text())
    assert {mask["score"] for mask in body["masks"] if mask["pixels"]} == {None} and body["label_rule"] == "strongest"
    assert "None" not in repr(result) and result.as_coco()[0]["score"] is None


def pixels_of(picture, engine):
    """The picture as the graph takes it, at the engine's own working size."""
    return fit(picture, engine.image_size, engine.stride).pixels


def nearest(array, shape):
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(shape, array.shape))
    return array[np.ix_(rows, columns)]


@pytest.mark.parametrize(
    "needing",
    [
        lambda engine, picture, folder: engine.segment(picture).logits,
        lambda engine, picture, folder: engine.segment(picture).confidence(0),
        lambda engine, picture, folder: engine.segment_tiles(picture, None, folder, tile=32),
        lambda engine, picture, folder: engine.segment(picture, threshold=0.7),
        lambda engine, picture, folder: engine.logits(pixels_of(picture, engine)),
    ],
)
def test_what_needs_logits_is_refused_without_them(engines, asked, needing, tmp_path):
    with pytest.raises(UsageError, match="--labels-only"):
        needing(engines["labels_only"], asked[1], tmp_path)


@pytest.mark.parametrize("kind", ["full", "labels_only"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"against": ["road"]}, "contrast prompts"),
        ({"all_prompts": True}, "all_prompts"),
        ({"refine": 1}, "refine"),
        ({"labels": "parts"}, "strongest"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(engines, asked, kind, options, words):
    with pytest.raises(UsageError, match=words) as told:
        engines[kind].segment(asked[1], **options)
    assert "without --vocabulary" in str(told.value) and "\n" not in str(told.value)


def test_another_prompt_is_refused_with_the_list(engines, asked):
    with pytest.raises(
        InputError, match=r"'red circel!' is not .*did you mean red circle!\?; it answers for 7 names: red circle!"
    ):
        engines["full"].segment(asked[1], ["red circel!"])
    with pytest.raises(InputError, match="no prompt given"):
        engines["open"].segment(asked[1])
    many = Vocabulary(tuple(map(str, range(40))), tuple(map(str, range(40))))
    with pytest.raises(InputError, match="40 names: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more"):
        many.numbers(["x"])


@pytest.mark.parametrize("kind", ["full", "labels_only"])
def test_every_road_leads_to_the_same_answer(engines, asked, kind):
    engine, pictures = engines[kind], open_pictures(asked)
    wanted = [engine.segment(picture) for picture in pictures]
    encoding = engine.encode(pictures[0])
    prepared = engine.prepare(engine.vocabulary)
    roads = [
        [engine.segment(encoding), *wanted[1:]],
        [engine.segment(picture, prepared) for picture in pictures],
        engine.segment_batch(pictures),
        list(engine.stream(iter(pictures), batch=2)),
        engine.segment_batch([engine.encode(picture) for picture in pictures], list(engine.vocabulary)),
    ]
    for found in roads:
        for left, right in zip(wanted, found, strict=True):
            assert (left.label_map == right.label_map).mean() > 0.9999 and left.prompts == right.prompts
    assert np.array_equal(wanted[0].label_map, roads[0][0].label_map)


def test_tiles_of_a_bundle_with_logits(engines, asked, tmp_path):
    picture = np.tile(asked[1][:32, :32], (2, 2, 1))
    done = engines["full"].segment_tiles(picture, None, tmp_path / "a", tile=32, overlap=0)
    wanted = engines["open"].segment_tiles(picture, asked[0], tmp_path / "b", tile=32, overlap=0)
    assert (done.label_map == wanted.label_map).mean() > 0.999 and done.label_map.shape == (64, 64)


def test_label_map_of_pixels(engines, asked):
    pixels = np.concatenate([pixels_of(picture, engines["full"])[:, :, :16] for picture in open_pictures(asked)])
    found, alone = (engines[name].label_map(pixels) for name in ("full", "labels_only"))
    wanted = engines["open"].label_map(pixels, asked[0])
    assert found.dtype == np.int32 and np.array_equal(found, alone) and (found == wanted).mean() > 0.999
    assert (engines["full"].label_map(pixels, threshold=0.9) > 0).sum() < (found > 0).sum()


class Wrong(OrtBackend):
    """Labels one pixel too far right."""

    def labels(self, encoding, wanted):
        found = super().labels(encoding, wanted)
        return {**found, "label_map": np.roll(found["label_map"], 1, -1)}


class Faint(OrtBackend):
    def labels(self, encoding, wanted):
        found = super().labels(encoding, wanted)
        return {name: value * 0.9 if name == "logits" else value for name, value in found.items()}


class Unsure(OrtBackend):
    def labels(self, encoding, wanted):
        found = super().labels(encoding, wanted)
        return {name: value + 0.1 if name == "presence" else value for name, value in found.items()}


@pytest.mark.parametrize(
    ("backend", "kind", "words"),
    [(Wrong, "full", "share of the label map"), (Wrong, "labels_only", "share of the label map"), (Faint, "full", "error"),
     (Unsure, "labels_only", "error")],
)  # fmt: skip
def test_a_backend_that_is_wrong_is_refused_at_load(folded, backend, kind, words):
    source = open_source(getattr(folded, kind))
    error, share = check_golden(OrtBackend(source), source.golden)
    assert error < 1e-3 and share > 0.999
    with pytest.raises(BackendError, match=f"wrong: {words}"):
        named(BackendKind("odd", lambda: Usable("odd", True, ""), lambda source: backend(source)), source)


def test_backends_that_ask_prompts_are_refused(folded, with_presence):
    with pytest.raises(BackendError, match="folded into its graph"):
        Engine.load(folded.full, "torch", checkpoint=with_presence.checkpoint)

    class Plain:
        name = detail = "plain"

    with pytest.raises(BackendError, match="does not run folded bundles"):
        create(
            BackendKind("plain", lambda: Usable("plain", True, ""), lambda source: Plain()), open_source(folded.full)
        )
    assert Engine.load(folded.full, checkpoint=with_presence.checkpoint).backend.name != "torch"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(names=v["names"][:-1]), "as many prompts"),
        (lambda v: v.update(names=[v["names"][0]] * len(v["names"])), "stands there twice"),
        (lambda v: v.update(names=["", *v["names"][1:]]), "no name"),
        (lambda v: v.update(rule="smallest"), "the rule"),
        (lambda v: v.update(names=[], prompts=[]), "1 to 65534"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(folded, tmp_path, change, words):
    copy = shutil.copytree(folded.full, tmp_path / "b")
    manifest = json.loads((copy / MANIFEST).read_text())
    change(manifest["vocabulary"])
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=words):
        open_bundle(copy)


def test_a_golden_map_that_is_not_the_graphs_is_found_out(folded, tmp_path):
    from safetensors.numpy import load_file, save_file

    copy = shutil.copytree(folded.labels_only, tmp_path / "b")
    arrays = load_file(copy / "golden.safetensors")
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).unlink()
    save_file({**arrays, "label_map": np.roll(arrays["label_map"], 2, 1)}, copy / "golden.safetensors")
    finish(copy, manifest)
    with pytest.raises(BackendError, match="share of the label map"):
        Engine.load(copy)


def test_a_profile_of_pictures(engines, folded):
    from digseg_engine.runtime.profile import Profile, Range

    shapes = {
        "B": Range(2, 2, 2),
        "K": Range(1, 5, 16),
        "L": Range(8, 16, 77),
        "H": Range(64, 64, 64),
        "W": Range(64, 64, 64),
    }
    engine, picture = Engine.load(folded.full, "onnxruntime"), np.full((64, 64, 3), 80, np.uint8)
    wanted = engine.segment(picture, size=64)
    engine.runner.profile = replace(Profile(shapes))
    assert np.array_equal(engine.segment(picture).label_map, wanted.label_map)


def read(tmp_path, text):
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    return read_vocabulary(tmp_path / "names.txt")


def test_the_file_of_a_vocabulary(tmp_path):
    found = read(tmp_path, "# classes\n\nroad\n  car = a car seen from above \nStraße\na=b\n")
    assert found.names == ("road", "car", "Straße", "a=b")
    assert found.prompts == ("road", "a car seen from above", "Straße", "a=b")
    assert Vocabulary.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road\nwater\nroad\n", "line 3: the name 'road' stands in line 1"),
        ("a = road\n# b\nb = road\n", "line 3: the prompt 'road' stands in line 1"),
        ("road\n = water\n", "line 2: .* has no name"),
        ("road\nwater = \n", "line 2: .* has no prompt"),
        ("# nothing\n\n", "has no prompt"),
        ("\n".join(f"thing {i}" for i in range(65_535)), "line 65535: more than 65534 names"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as told:
        read(tmp_path, text)
    assert "\n" not in str(told.value)


def test_the_most_names(tmp_path):
    found = read(tmp_path, "\n".join(f"thing {i}" for i in range(65_534)))
    assert found.folding.label_dtype == "uint16" and len(found.names) == 65_534
    assert replace(found, names=found.names[:256]).folding.label_dtype == "uint16"
    assert replace(found, names=found.names[:255]).folding.label_dtype == "uint8"
