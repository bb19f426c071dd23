"""Mistakes that only the sum of a data set's files shows: each is named with its cure."""

import json
import re

import numpy as np
import pytest
from dataset_trees import grey, label_map, own, palette, picture
from PIL import Image
from small_stage import short_run

from digseg_engine.commands import data as command
from digseg_engine.commands.main import dispatch
from digseg_engine.data.checks import READ, check_marks
from digseg_engine.data.classes import EXAMPLE, parse_classes
from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.survey import class_colour, split_line, survey
from digseg_engine.errors import InputError
from digseg_engine.training.recipes.finetune import check_data

TWO = [{"name": "leaf", "id": 1}, {"name": "earth", "id": 2}]


def classes(folder, **body):
    (folder / "classes.json").write_text(json.dumps(body))


def labelled(folder, name, values, shape=(32, 32)):
    picture(folder / f"images/{name}.png", 1, shape)
    grey(folder / f"masks/{name}.png", np.resize(values, shape))


def check(folder):
    """The command's exit code."""
    return command.run(folder, None, "all", folder / "overview.png", 4)


def black_and_white(folder):
    for n in range(3):
        labelled(folder, f"p{n}", [0, 0, 0, 255])


@pytest.mark.parametrize(
    "body",
    [
        {"classes": ["ground", "lesion"]},
        {"classes": ["lesion"]},
        {"classes": [{"name": "lesion", "id": 1}], "background": 0},
    ],
)
def test_black_and_white_masks_whose_white_is_ignored_are_an_error_with_cures_that_work(tmp_path, capsys, body):
    black_and_white(tmp_path)
    classes(tmp_path, **body)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    text = str(caught.value)
    assert "only 0 and 255" in text and "25 % of the pixels" in text
    assert check(tmp_path) == 2
    assert "masks hold only 0 and 255" in capsys.readouterr().err
    given = json.loads(re.search(r'\{"name".*?\}', text)[0])
    for cure in ({"classes": ["lesion"], "masks": "threshold"}, {"classes": [given], "background": 0}):
        classes(tmp_path, **cure)
        dataset = open_dataset(tmp_path)
        assert dataset.names == ("lesion",) and (dataset[0].ids == 0).mean() == 0.25
        assert not survey(dataset).problems
    classes(tmp_path, **body, ignore=255)
    assert len(open_dataset(tmp_path)) == 3  # who says that white is ignored is believed


def test_one_black_and_white_mask_among_others_is_named(tmp_path, capsys):
    for n in range(40):
        labelled(tmp_path, f"p{n:02}", [0, 255] if n == 21 else [0, 1, 2])
    classes(tmp_path, classes=TWO, background=0)
    start = "the masks of 1 of 40 pictures (p21) hold only 0 and 255 where others hold class numbers"
    (note,) = notes(tmp_path)
    assert note.startswith(start) and '"ignore": 255' in note and "teach nothing but background" in note
    assert check(tmp_path) == 0 and start[:30] in capsys.readouterr().err
    (said,) = check_marks(open_dataset(tmp_path), READ)
    assert said == note
    classes(tmp_path, classes=TWO, background=0, ignore=255)
    assert not notes(tmp_path)  # who says that white is ignored is believed
    labelled(tmp_path, "p21", [0, 1, 255])
    classes(tmp_path, classes=TWO, background=0)
    assert not notes(tmp_path)


def test_training_names_it_before_it_begins(tmp_path, nano, capsys):
    for n in range(40):
        labelled(tmp_path, f"p{n:02}", [0, 255] if n == 21 else [0, 1, 2])
    classes(tmp_path, classes=TWO, background=0)
    check_data(nano, str(tmp_path), short_run(size=nano.config.image_size))
    assert "warning: the masks of 1 of 40 pictures (p21)" in capsys.readouterr().err


def test_borders_of_255_beside_two_classes_are_no_black_and_white_masks(tmp_path):
    labelled(tmp_path, "a", [1, 2, 255])
    classes(tmp_path, classes=TWO)
    assert len(open_dataset(tmp_path)) == 1 and not survey(open_dataset(tmp_path)).problems


def notes(folder, split="all"):
    return survey(open_dataset(folder, split=split, strict=False)).notes


def test_a_split_of_mostly_empty_masks_is_named(tmp_path):
    for n in range(4):
        for split in ("train", "test"):
            empty = split == "test" and n < 3
            labelled(tmp_path, f"{split}/{n}", [0] if empty else [1, 2, 0])
    (tmp_path / "images").joinpath("train").mkdir(exist_ok=True)
    for kind in ("images", "masks"):
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ["test", "train"]
    classes(tmp_path, classes=TWO, background=0)
    (note,) = notes(tmp_path)
    assert note.startswith("3 of 4 pictures (test/0, test/1, test/2) of split 'test' show none of the classes")
    assert not notes(tmp_path, "train")


def test_pictures_of_one_label_only_are_named(tmp_path):
    for n in range(4):
        labelled(tmp_path, f"{n}", [2] if n < 3 else [1, 2])
    classes(tmp_path, classes=TWO)
    (note,) = notes(tmp_path)
    assert note.startswith("3 of 4 pictures (0, 1, 2) of the data set hold one label only")


def test_a_class_that_never_occurs_or_not_in_a_split_is_named(tmp_path):
    labelled(tmp_path, "train/a", [1, 2])
    labelled(tmp_path, "val/b", [2, 2, 0])
    classes(tmp_path, classes=[*TWO, {"name": "stone", "id": 7}], background=0)
    never, missing = notes(tmp_path)
    assert never.startswith("stone (id 7) never occurs") and "classes.json" in never
    assert missing.startswith("leaf occurs in no picture of split 'val'")
    assert split_line(open_dataset(tmp_path, split="all")) == "splits: train 1, val 1"


def test_pictures_ignored_for_the_most_part_are_named(tmp_path):
    labelled(tmp_path, "a", [1, 255, 255, 2, 255])
    classes(tmp_path, classes=TWO)
    (note,) = notes(tmp_path)
    assert "1 of 1 pictures (a) of the data set are ignored for more than half" in note


def test_a_range_hardly_used_is_named(tmp_path):
    labelled(tmp_path, "a", [1, 2])
    Image.fromarray(np.full((32, 32, 3), 15, np.uint8)).save(tmp_path / "images/a.png")
    classes(tmp_path, classes=TWO)
    (note,) = notes(tmp_path)
    assert note.startswith("1 of 1 pictures (a) stay below 32 of 255")


def test_files_that_are_not_read_are_counted_by_kind(tmp_path):
    labelled(tmp_path, "a", [1, 2])
    for name in ("b.gif", "c.gif", ".d.png", "Thumbs.db"):
        (tmp_path / "images" / name).write_bytes(b"x")
    classes(tmp_path, classes=TWO)
    (note,) = notes(tmp_path)
    assert "4 files" in note and "(1 .db, 2 .gif, 1 hidden)" in note


def test_a_sound_set_gets_no_note_and_its_own_colours(tmp_path, capsys):
    own(tmp_path)
    assert check(tmp_path) == 0
    said = capsys.readouterr()
    assert "3 of 3 pictures are sound; labels" in said.out and "warning" not in said.err
    table = open_dataset(tmp_path).table
    assert class_colour(0, table) == (128, 64, 128) and class_colour(0) != (128, 64, 128)


def test_the_overview_is_named_after_the_folder_and_goes_where_other_results_go(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    classes(tmp_path / "mine", classes=["soil", "weed"])
    labelled(tmp_path / "mine", "a", [0, 1])
    for place in (tmp_path, tmp_path / "mine"):
        monkeypatch.chdir(place)
        assert dispatch(["data", "." if place.name == "mine" else "mine"]) == 0
        assert (place / "out" / "mine.labels.png").is_file() and not (place / "data.png").exists()
    assert "labels drawn in out/mine.labels.png" in capsys.readouterr().out


def test_a_palette_mask_takes_its_background_by_number(tmp_path):
    colours = {0: (0, 0, 0), 7: (128, 64, 128), 9: (0, 0, 142)}
    own(tmp_path, kind="palette", ignore=255, ignore_colour=[])
    palette(tmp_path / "masks/p0.png", label_map([0, 7, 9]), colours)
    with pytest.raises(InputError, match="wrong palette: index 0") as caught:
        open_dataset(tmp_path)[0]
    cures = re.search(r'add ("background": \d+) or ("background_colour": \[.*?\])', str(caught.value)).groups()
    body = json.loads((tmp_path / "classes.json").read_text())
    for cure in cures:
        classes(tmp_path, **body, **json.loads(f"{{{cure}}}"))
        ids = open_dataset(tmp_path)[0].ids
        assert np.array_equal(ids, np.select([label_map([0, 7, 9]) == v for v in (7, 9)], [0, 1], -2))


def test_cures_for_unknown_values_and_colours_are_accepted(tmp_path):
    labelled(tmp_path, "a", [1, 2, 40])
    for body in ({"classes": TWO}, {"classes": [{**TWO[0], "colour": [9, 9, 9]}, {**TWO[1], "colour": [8, 8, 8]}]}):
        classes(tmp_path, **body)
        if "colour" in body["classes"][0]:
            table = np.zeros((256, 3), np.uint8)
            table[[1, 2, 40]] = [9] * 3, [8] * 3, [7] * 3
            Image.fromarray(table[np.resize([1, 2, 40], (32, 32))]).save(tmp_path / "masks/a.png")
        with pytest.raises(InputError) as caught:
            open_dataset(tmp_path)[0]
        cures = re.findall(r'"(?:background|ignore|background_colour)": (?:\d+|\[[\d, ]+\])', str(caught.value))
        assert cures
        for cure in cures:
            classes(tmp_path, **body, **json.loads(f"{{{cure}}}"))
            assert open_dataset(tmp_path)[0].ids.min() < 0


def test_the_example_that_errors_show_is_itself_accepted(tmp_path):
    for spoilt in ("{", "[]", {"classes": []}):
        own(tmp_path / "a", count=1)
        (tmp_path / "a/classes.json").write_text(spoilt if isinstance(spoilt, str) else json.dumps(spoilt))
        with pytest.raises(InputError) as caught:
            open_dataset(tmp_path / "a")
        shown = str(caught.value)
        example, _ = json.JSONDecoder().raw_decode(shown[shown.index('{"classes"') :])
        assert parse_classes(example, "example").names == ("road", "car") and example == json.loads(EXAMPLE)


@pytest.mark.parametrize(
    "body",
    [
        {"classes": [{"name": "car", "synonyms": ["Lorry"]}, "lorry"]},
        {"classes": [{"name": "car", "prompt": "lorry"}, "lorry"]},
        {"classes": [{"name": "car", "synonyms": ["van"]}, {"name": "lorry", "synonyms": ["van"]}]},
        {"classes": [{"name": "car", "synonyms": ["van"]}], "absent": ["van"]},
    ],
)
def test_a_wording_of_two_meanings_is_refused(body):
    with pytest.raises(InputError, match="must mean one class"):
        parse_classes(body, "x")
    assert parse_classes({"classes": [{"name": "car", "prompt": "the car", "synonyms": ["car"]}]}, "x").names == (
        "car",
    )


def test_names_spelled_apart_by_two_systems_are_one_name(tmp_path):
    picture(tmp_path / "images/e\u0301te\u0301.png", 0, (32, 32))
    grey(tmp_path / "masks/\u00e9t\u00e9.png", np.resize([1, 2], (32, 32)))
    (tmp_path / "train.txt").write_text("e\u0301t\u00e9\n")
    classes(tmp_path, classes=TWO)
    assert len(open_dataset(tmp_path)) == 1 and open_dataset(tmp_path)[0].ids.max() == 1
    assert parse_classes({"classes": ["e\u0301te\u0301"]}, "x").names == ("\u00e9t\u00e9",)


def test_a_git_lfs_pointer_is_called_one(tmp_path):
    labelled(tmp_path, "a", [1, 2])
    classes(tmp_path, classes=TWO)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    for kind in ("masks", "images"):
        (tmp_path / kind / "a.png").write_text(pointer)
        with pytest.raises(InputError, match=rf"{kind}/a.png is a Git LFS pointer.*git lfs pull"):
            open_dataset(tmp_path)[0]
