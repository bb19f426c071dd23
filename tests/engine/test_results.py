"""Results of known logits: rules of the label map, thresholds, confidence, files and what their JSON says."""

import json

import numpy as np
import pytest
from PIL import Image

from digseg_engine.errors import OutputError, UsageError
from digseg_engine.images import Picture, fit, unfit_plane
from digseg_engine.runtime import result as results
from digseg_engine.runtime.labels import USUAL, Rules, label
from digseg_engine.runtime.record import percent
from digseg_engine.runtime.result import About, Segmentation
from digseg_engine.runtime.rle import decode

CELL, NUCLEUS, WATER = (slice(4, 24), slice(4, 24)), (slice(10, 16), slice(10, 16)), (slice(2, 30), slice(40, 60))
PROMPTS = ("nucleus", "cell", "water")


def planes(strength=(1.0, 6.0, 3.0)):
    """Logits [3, 32, 64]: a weak nucleus inside a strong cell, and water elsewhere."""
    logits = np.full((3, 32, 64), -4, np.float32)
    for k, where in enumerate((NUCLEUS, CELL, WATER)):
        logits[k][where] = strength[k]
    return logits


def segmented(logits=None, prompts=PROMPTS, rules=USUAL, shape=(64, 128), path=None, rgb=None, notes=()):
    logits = planes() if logits is None else logits
    if rgb is None:
        rgb = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    frame = fit(rgb, 64, 32).frame
    answer = label(list(logits), lambda plane: unfit_plane(frame, plane), frame.original, rules)
    about = About("model", "abc", "made up", 64, rules, ("a note",))
    return Segmentation(
        tuple(prompts), Picture(rgb, notes, path), answer, logits, tuple(logits), frame, about, {"model": 1.0}
    )


def test_parts_show_in_their_wholes_and_disjoint_masks_are_left_to_the_strongest():
    shown = {rule: np.bincount(segmented(rules=Rules(labels=rule)).label_map.ravel(), minlength=4)
             for rule in ("strongest", "smallest", "parts")}  # fmt: skip
    nucleus = segmented().masks[0].sum()
    assert shown["strongest"][1] < 0.5 * nucleus
    assert shown["smallest"][1] == shown["parts"][1] == nucleus
    assert len({counts[3] for counts in shown.values()}) == 1
    overlapping = planes()
    overlapping[2] = -4
    overlapping[2, 4:24, 16:30] = 3  # smaller, and a little more than half in the cell: no part of it
    half = segmented(overlapping)
    assert np.array_equal(half.label_map == 2, half.masks[1] & ~half.masks[0])
    assert ((half.label_map == 3) & half.masks[1]).sum() == 0


def test_a_printed_result_is_one_short_line():
    many = segmented(np.concatenate([planes()] * 50), [f"a thing of kind {k}" for k in range(150)])
    assert repr(segmented()) == str(segmented())
    shares = ", ".join(f"{name!r} {percent(area)}" for name, area in zip(PROMPTS, segmented().areas))
    assert str(segmented()) == f"Segmentation(128x64: {shares}; model, made up, 1.00 s)"
    assert len(str(many)) < 300 and "and 146 more" in str(many) and "\n" not in str(many)
    assert "'nucleus' none" in str(segmented(planes((-1.0, 6.0, 3.0))))


def test_the_order_of_prompts_changes_no_label():
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        for rule in ("strongest", "smallest", "parts"):
            turned = segmented(planes()[list(order)], [PROMPTS[k] for k in order], Rules(labels=rule))
            names = np.array(["", *turned.prompts])[turned.label_map]
            wanted = segmented(rules=Rules(labels=rule))
            assert np.array_equal(names, np.array(["", *PROMPTS])[wanted.label_map]), (order, rule)
    assert segmented().label_names == {1: "nucleus", 2: "cell", 3: "water"}


@pytest.mark.parametrize("rule", ["parts", "smallest", "strongest"])
def test_a_plane_without_a_cell_in_its_mask_is_not_enlarged(rule, monkeypatch):
    few = np.full((9, 32, 64), -20, np.float32)
    few[[2, 3, 7]] = planes()
    frame, rules = fit(np.zeros((64, 128, 3), np.uint8), 64, 32).frame, Rules(labels=rule)
    enlarged = []

    def enlarge(plane):
        enlarged.append(next(k for k in range(9) if np.shares_memory(few[k], plane)))
        return unfit_plane(frame, plane)

    found = label(list(few), enlarge, frame.original, rules)
    assert sorted(enlarged) == [2, 3, 7]
    monkeypatch.setattr("digseg_engine.runtime.labels.empty", lambda plane, border: False)
    every = label(list(few), enlarge, frame.original, rules)
    assert len(enlarged) == 12
    assert all(
        np.array_equal(getattr(found, name), getattr(every, name))
        for name in ("masks", "scores", "label_map", "pixels")
    )
    assert found.boxes == every.boxes and found.pixels.any()
    nothing = label(list(few[:2]), enlarge, frame.original, rules)
    assert len(enlarged) == 12 + 2 and not nothing.label_map.any() and nothing.boxes == (None, None)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_masks_are_where_the_confidence_is_over_the_threshold(threshold):
    result = segmented(rules=Rules(threshold=threshold))
    for k in range(3):
        confidence = result.confidence(k)
        assert confidence.shape == (64, 128) and confidence.dtype == np.float32
        assert confidence.min() >= 0 and confidence.max() <= 1
        differs = result.masks[k] != (confidence > threshold)
        assert np.abs(confidence[differs] - threshold).max(initial=0) < 1e-5
        if result.masks[k].any():
            assert result.scores[k] == pytest.approx(confidence[result.masks[k]].mean(), rel=1e-4)
    assert result.masks[0].any() == (threshold < 0.7)  # the weak one has a probability of 0.73 and less at its border


def test_rules_out_of_range_are_refused():
    for wrong in (
        {"threshold": 0},
        {"threshold": 1},
        {"threshold": -1},
        {"threshold": float("nan")},
        {"labels": "first"},
    ):
        with pytest.raises(UsageError, match=r"threshold|label rule"):
            Rules(**wrong)


def test_masks_that_were_not_kept_are_made_anew():
    kept, left_out = segmented(), segmented(rules=Rules(keep_masks=False))
    assert left_out.answer.masks is None and np.array_equal(left_out.masks, kept.masks)
    assert np.array_equal(left_out.label_map, kept.label_map) and np.array_equal(left_out.areas, kept.areas)
    assert left_out.as_coco() == kept.as_coco()
    for note in left_out.as_coco():
        assert np.array_equal(decode(note["segmentation"]), kept.mask(note["category_id"] - 1))


def test_results_are_compared_by_identity():
    one, other = segmented(), segmented()
    assert one == one and one != other and len({one, other}) == 2


def test_slivers_do_not_count_as_found():
    logits = planes()
    logits[0] = -4
    logits[0, 5, 5] = 0.5  # its mask is smaller than one logit
    result = segmented(logits, shape=(64 * 8, 128 * 8))
    assert result.masks[0].any() and result.found.tolist() == [False, True, True]
    assert result._legend_line(0) == ("nucleus", "not found") and not result.as_dict()["masks"][0]["found"]
    assert [percent(a) for a in (0, 0.123, 0.0004, 0.00001)] == ["0.0 %", "12.3 %", "0.04 %", "under 0.01 %"]


def test_everything_written_is_listed(tmp_path):
    result = segmented(path="photos/p.png", notes=("the first of 2 pages was read",))
    written = result.save(tmp_path, "p")
    body = json.loads((tmp_path / "p.json").read_text())
    listed = {*body["files"].values(), *(mask["file"] for mask in body["masks"]), "p.json"}
    assert listed == {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert [mask["label"] for mask in body["masks"]] == [1, 2, 3] and body["picture"] == "photos/p.png"
    assert body["model"] == {"name": "model", "sha256": "abc"} and body["working_size"] == 64 and body["version"]
    assert body["notes"] == ["a note", "the first of 2 pages was read"] and body["label_rule"] == "parts"
    assert body["seconds"]["save"] > 0 and result.timings["save"] >= body["seconds"]["save"] - 1e-5
    for k, mask in enumerate(body["masks"]):
        picture = np.asarray(Image.open(tmp_path / mask["file"]))
        assert np.array_equal(picture > 127, result.masks[k]) and set(np.unique(picture)) <= {0, 255}
    with Image.open(tmp_path / "p.labels.png") as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), result.label_map)
        assert np.asarray(picture.convert("RGB"))[result.label_map == 1].tolist()[0] == list(results.PALETTE[0])


@pytest.mark.parametrize("what", [("labels",), ("masks", "json"), ("overlay",), ("json",), ()])
def test_only_what_is_asked_for_is_written(tmp_path, what):
    kinds = {"overlay": ["p.overlay.png"], "labels": ["p.labels.png"], "json": ["p.json"],
             "masks": ["p.mask.nucleus.png", "p.mask.cell.png", "p.mask.water.png"]}  # fmt: skip
    written = segmented().save(tmp_path, "p", what)
    wanted = {name for kind in what for name in kinds[kind]}
    assert wanted == {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    with pytest.raises(UsageError, match="cannot save polygons; expected some of overlay"):
        segmented().save(tmp_path, "p", ["polygons"])


def test_more_than_255_prompts_have_16_bit_labels(tmp_path):
    logits = np.full((300, 32, 64), -4, np.float32)
    logits[299, 4:20, 4:20] = 3
    segmented(logits, [f"p{k}" for k in range(300)]).save(tmp_path, "p", ["labels"])
    assert np.asarray(Image.open(tmp_path / "p.labels.png")).max() == 300


def test_results_of_an_earlier_run_go_and_nothing_else(tmp_path):
    (tmp_path / "p.mask.mine.png").write_bytes(b"somebody's")
    segmented().save(tmp_path, "p")
    segmented(planes()[:1], ["the nucleus"]).save(tmp_path, "p")
    assert {path.name for path in tmp_path.glob("*.mask.*")} == {"p.mask.the-nucleus.png", "p.mask.mine.png"}
    body = json.loads((tmp_path / "p.json").read_text())
    body["files"]["x"], body["files"]["y"] = "../q.png", "q.png"  # a record that was tampered with
    (tmp_path / "p.json").write_text(json.dumps(body))
    segmented().save(tmp_path, "q", ["overlay"])
    (tmp_path.parent / "q.png").write_bytes((tmp_path / "q.overlay.png").read_bytes())
    (tmp_path / "q.png").write_bytes((tmp_path / "q.overlay.png").read_bytes())
    segmented().save(tmp_path, "p")
    assert (tmp_path.parent / "q.png").exists() and (tmp_path / "q.png").exists()


@pytest.mark.parametrize("name", ["p.json", "p.overlay.png", "p.mask.cell.png", "p.labels.png"])
def test_files_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text('{"shapes": [], "version": "5.5"}')
    with pytest.raises(OutputError, match=f"{name} is there and was not written by this program"):
        segmented().save(tmp_path, "p")
    assert [path.name for path in tmp_path.iterdir()] == [name] and "shapes" in (tmp_path / name).read_text()


def test_places_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "d" / "p.mask.cell.png").mkdir(parents=True)
    for folder, stem in (
        (tmp_path / "file", "p"),
        (tmp_path / "file" / "under", "p"),
        (tmp_path / "d", "p"),
        (tmp_path, "n" * 250),
    ):
        with pytest.raises(OutputError) as caught:
            segmented().save(folder, stem)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_half_written_is_left(tmp_path, monkeypatch, error):
    save, calls = Image.Image.save, []

    def interrupted(self, path, *arguments, **options):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"\x89PNG half")
            raise error
        save(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        segmented().save(tmp_path, "p")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["p.mask.nucleus.png", "p.overlay.png"]
    for name in left:
        Image.open(tmp_path / name).load()


def test_fewer_kinds_for_the_same_question_take_nothing_away(tmp_path):
    segmented().save(tmp_path, "p")
    everything = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".png"}
    segmented().save(tmp_path, "p", ("json",))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".png"} == everything
    body = json.loads((tmp_path / "p.json").read_text())
    assert set(body["files"]) == {"overlay", "labels"} and all(mask["file"] in everything for mask in body["masks"])
    segmented().save(tmp_path, "p", ("masks", "json"))
    assert set(json.loads((tmp_path / "p.json").read_text())["files"]) == {"overlay", "labels"}
    segmented(rules=Rules(threshold=0.6)).save(tmp_path, "p", ("json",))  # another question: the old answers are stale
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    assert json.loads((tmp_path / "p.json").read_text())["files"] == {}
