"""Every known layout from a small tree in its true form: what is listed, how ids are reduced, what is ignored."""

import shutil

import numpy as np
import pytest
from dataset_trees import SIZE, TREES, grey, label_map, own, palette, picture, voc_colour

from digseg_engine.data.datasets import BACKGROUND, IGNORE, dataset_splits, layout_names, open_dataset
from digseg_engine.data.layouts import known_layout
from digseg_engine.data.query import TEMPLATES
from digseg_engine.errors import InputError, UsageError

# layout -> (names of the train split, {raw mask value: class name, None = background}); every other value is ignored
EXPECTED = {
    "ade20k": (["ADE_train_00000000", "ADE_train_00000001", "ADE_train_00000002"],
               {1: "wall", 2: "building", 75: "computer", 150: "flag"}),
    "cityscapes": (["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "bochum/bochum_000000_000019",
                    "bochum/bochum_000001_000019"],
                   {7: "road", 8: "sidewalk", 24: "person", 26: "car", 33: "bicycle"}),
    "coco-stuff": (["000000000000", "000000000001", "000000000002"],
                   {0: "person", 66: "dining table", 91: "banner", 181: "wood"}),
    "folder": (["p0", "p1", "p2"], {7: "road", 9: "car"}),
    "isic2018": (["ISIC_0000000", "ISIC_0000001"], {0: None, 255: "skin lesion"}),
    "kvasir": (["cju00", "cju01", "cju02"], {0: None, 255: "polyp"}),
    "loveda": (["Rural/0", "Urban/1366"],
               {1: "background", 2: "building", 3: "road", 4: "water", 5: "barren", 6: "forest", 7: "agricultural"}),
    "pascal-context": (["2008_000000", "2008_000001"], {1: "aeroplane", 11: "table", 59: "wood"}),
    "pascal-context-mat": (["2008_000000", "2008_000001"], {113: "dog", 397: "table"}),
    "phenobench": (["05-15_00000_P0030851", "05-15_00001_P0030851"],
                   {0: "soil", 1: "crop", 2: "weed", 3: "crop", 4: "weed"}),
    "voc2012": (["2007_000002", "2007_000000", "2007_000001"],
                {0: None, 1: "aeroplane", 15: "person", 20: "tvmonitor"}),
}  # fmt: skip
SIZES = {"ade20k": 150, "cityscapes": 19, "coco-stuff": 171, "isic2018": 1, "kvasir": 1, "loveda": 7,
         "pascal-context": 59, "pascal-context-mat": 59, "phenobench": 3, "voc2012": 20}  # fmt: skip


@pytest.mark.parametrize("layout", TREES)
def test_every_layout_is_recognised_read_and_reduced(tmp_path, layout):
    values = TREES[layout](tmp_path)
    names, meaning = EXPECTED[layout]
    dataset = open_dataset(tmp_path)
    assert (dataset.layout.name, [record.name for record in dataset.records]) == (layout, names)
    for i, seed in enumerate([2, 0, 1] if layout == "voc2012" else SEEDS.get(layout, range(len(names)))):
        raw = label_map(values, seed)
        wanted = np.full(raw.shape, IGNORE, np.int16)
        for value, name in meaning.items():
            wanted[raw == value] = BACKGROUND if name is None else dataset.names.index(name)
        one = dataset[i]
        assert one.name == names[i] and one.image.shape == (*SIZE, 3) and one.image.dtype == np.uint8
        assert one.ids.dtype == np.int16 and np.array_equal(one.ids, wanted)


SEEDS = {"cityscapes": (0, 1, 0, 1), "loveda": (0, 1366)}


@pytest.mark.parametrize("layout", TREES)
def test_splits_are_those_on_disk(tmp_path, layout):
    TREES[layout](tmp_path)
    whole = ("folder", "kvasir")
    splits = ("all",) if layout in whole else ("train", "val", "test") if layout == "isic2018" else ("train", "val")
    assert dataset_splits(tmp_path) == splits
    assert len(open_dataset(tmp_path, split="all")) == sum(len(open_dataset(tmp_path, split=s)) for s in splits)
    with pytest.raises(UsageError, match="has no split 'holdout'; expected one of"):
        open_dataset(tmp_path, split="holdout")


@pytest.mark.parametrize("layout", layout_names()[1:])
def test_every_table_of_classes_is_whole(layout):
    table = known_layout(layout).table
    assert len(table.names) == len(set(table.names)) == SIZES[layout]
    assert all(query.text and "-" not in query.text for query in table.queries)
    rng = np.random.default_rng(0)
    for name in table.names:
        texts = {table.phrase(rng, name).text for _ in range(60)}
        assert table.by_name[name].wordings[0] in texts and len(texts) > 3


def test_the_usual_folder_around_a_data_set_may_be_given(tmp_path):
    for name, inside in (("voc2012", "VOCdevkit/VOC2012"), ("kvasir", "Kvasir-SEG"), ("ade20k", "ADEChallengeData2016"),
                         ("phenobench", "PhenoBench"), ("coco-stuff", "dataset")):  # fmt: skip
        TREES[name](tmp_path / name / inside)
        assert open_dataset(tmp_path / name).root == tmp_path / name / inside


def test_voc_with_the_additional_masks(tmp_path):
    """SegmentationClassAug: grey PNGs of the same ids for more pictures (Hariharan et al. 2011)."""
    TREES["voc2012"](tmp_path)
    grey(tmp_path / "SegmentationClassAug/2007_000005.png", label_map([0, 15]))
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").write_text("2007_000005\n")
    assert dataset_splits(tmp_path) == ("train", "val", "trainaug")
    ids = open_dataset(tmp_path, split="trainaug")[0].ids
    assert np.array_equal(ids, np.where(label_map([0, 15]) == 15, 14, BACKGROUND))


def test_coco_stuff_in_its_other_places(tmp_path):
    TREES["coco-stuff"](tmp_path)
    (tmp_path / "annotations").rename(tmp_path / "stuffthingmaps")
    assert len(open_dataset(tmp_path)) == 3
    (tmp_path / "images" / "train2017").rename(tmp_path / "train2017")
    assert len(open_dataset(tmp_path)) == 3
    shutil.copytree(tmp_path / "train2017", tmp_path / "images" / "train2017")
    shutil.copytree(tmp_path / "stuffthingmaps", tmp_path / "annotations")
    assert open_dataset(tmp_path)[0].name == "000000000000"


def test_kvasir_takes_its_official_lists(tmp_path):
    TREES["kvasir"](tmp_path)
    (tmp_path / "train.txt").write_text("cju00\ncju02\n")
    (tmp_path / "val.txt").write_text("cju01\n")
    assert [len(open_dataset(tmp_path, split=s)) for s in ("train", "val", "all")] == [2, 1, 3]


def test_voc_and_context_in_one_folder_must_be_named(tmp_path):
    TREES["voc2012"](tmp_path)
    TREES["pascal-context"](tmp_path)
    with pytest.raises(InputError, match="fits several layouts: pascal-context, voc2012; choose one with --layout"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, "voc2012")) == 3 and len(open_dataset(tmp_path, "pascal-context")) == 2


@pytest.mark.parametrize("kind", ["grey", "deep", "palette", "colour"])
def test_own_data_in_every_kind_of_mask(tmp_path, kind):
    values = own(tmp_path, kind=kind)
    for i, one in enumerate(open_dataset(tmp_path)):
        assert np.array_equal(one.ids, np.select([label_map(values, i) == v for v in (7, 9)], [0, 1], IGNORE))


def test_own_data_splits_by_folders_and_by_lists(tmp_path):
    own(tmp_path / "a")
    for kind in ("images", "masks"):
        for split, names in (("train", ("p0", "p1")), ("holdout", ("p2",))):
            (tmp_path / "a" / kind / split).mkdir()
            for name in names:
                (tmp_path / "a" / kind / f"{name}.png").rename(tmp_path / "a" / kind / split / f"{name}.png")
    assert dataset_splits(tmp_path / "a") == ("holdout", "train")
    assert [one.name for one in open_dataset(tmp_path / "a", split="train")] == ["train/p0", "train/p1"]
    own(tmp_path / "b")
    (tmp_path / "b" / "splits").mkdir()
    (tmp_path / "b" / "splits" / "tiny.txt").write_text("p2\np0.png\n")
    (tmp_path / "b" / "val.txt").write_text("p1\n\n")
    assert [one.name for one in open_dataset(tmp_path / "b", split="tiny")] == ["p2", "p0"]
    assert [one.name for one in open_dataset(tmp_path / "b", split="val")] == ["p1"]
    with pytest.raises(UsageError, match="has no split 'train'; expected one of tiny, val, all"):
        open_dataset(tmp_path / "b")
    (tmp_path / "b" / "val.txt").write_text("p1\np9\n")
    with pytest.raises(InputError, match=r"p9.png is listed in split 'val' but not there \(1 of 2"):
        open_dataset(tmp_path / "b", split="val")


def test_templates_default_and_own(tmp_path):
    own(tmp_path, templates=["one {} only"])
    table = open_dataset(tmp_path).table
    texts = {table.phrase(np.random.default_rng(i), "road").text for i in range(40)}
    assert texts == {"road", "one road only", "one street only", "one roads only"}  # plurals are words like the others
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_generated_palettes_have_vocs_colours():
    assert [voc_colour(i) for i in (1, 15, 20, 255)] == [(128, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)]


def test_a_voc_style_border_of_index_255_is_ignored_whatever_its_colour(tmp_path):
    own(tmp_path, classes=[{"name": "a", "colour": [128, 0, 0]}], count=0, ignore=255, ignore_colour=[])
    picture(tmp_path / "images" / "x.png")
    palette(tmp_path / "masks" / "x.png", label_map([3, 255]), {3: (128, 0, 0), 255: (224, 224, 192)})
    assert np.array_equal(open_dataset(tmp_path)[0].ids, np.where(label_map([3, 255]) == 3, 0, IGNORE))
