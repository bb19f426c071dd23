"""Every fault of a data set is one clear error that names the file, what was expected and what was found."""

import json
import struct
import zlib

import numpy as np
import pytest
from dataset_trees import CLASSES, TREES, grey, label_map, own, palette, picture
from PIL import Image

from digseg_engine.data.datasets import IGNORE, open_dataset
from digseg_engine.errors import InputError, UsageError


def read(folder, **options):
    for one in open_dataset(folder, **options):
        assert one.ids.shape == one.image.shape[:2]


def refused(folder, *words, **options):
    with pytest.raises(InputError) as caught:
        read(folder, **options)
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))


def test_size_mismatch(tmp_path):
    own(tmp_path)
    grey(tmp_path / "masks/p1.png", label_map([7, 9], size=(40, 48)))
    refused(tmp_path, "masks/p1.png is 48x40 pixels", "images/p1.png is 56x40")


def test_unknown_id(tmp_path):
    own(tmp_path)
    grey(tmp_path / "masks/p1.png", label_map([7, 9, 200, 3]))
    refused(tmp_path, "masks/p1.png: unknown id 3, 200", "expected 0, 7, 9 as in", "classes.json")
    grey(tmp_path / "masks/p1.png", label_map([7, 1000]), np.uint16)
    refused(tmp_path, "masks/p1.png: unknown id 1000")


@pytest.mark.parametrize(
    "layout", ["ade20k", "cityscapes", "coco-stuff", "loveda", "pascal-context", "phenobench", "voc2012"]
)
def test_unknown_id_in_every_layout_of_ids(tmp_path, layout):
    TREES[layout](tmp_path)
    mask = open_dataset(tmp_path).records[0].mask
    grey(mask, label_map([1, 211]))
    refused(tmp_path, f"{mask.name}: unknown id 211", f"the table of {layout}")


def test_wrong_palette(tmp_path):
    colours = {0: (0, 0, 0), 7: (128, 64, 128), 9: (0, 0, 142)}
    own(tmp_path, kind="palette")
    palette(tmp_path / "masks/p1.png", label_map([0, 7, 9]), {**colours, 9: (1, 2, 3)})
    refused(tmp_path, "masks/p1.png: wrong palette: index 9 is (1, 2, 3), which is no class's colour", "classes.json")
    palette(tmp_path / "masks/p1.png", label_map([0, 7, 9]), {**colours, 9: colours[7], 7: colours[9]})
    refused(tmp_path, "masks/p1.png: wrong palette: index 7 is (0, 0, 142), the colour of 'car', but id 7 is 'road'")


def test_unknown_colour(tmp_path):
    own(tmp_path, kind="colour")
    pixels = np.zeros((40, 56, 3), np.uint8)
    pixels[:20] = (128, 64, 129)
    Image.fromarray(pixels).save(tmp_path / "masks/p1.png")
    refused(tmp_path, "masks/p1.png: unknown colour (128, 64, 129)", "50.0 % of the pixels")
    alpha = np.full((40, 56, 4), 100, np.uint8)
    Image.fromarray(alpha).save(tmp_path / "masks/p1.png")
    refused(tmp_path, "masks/p1.png is a transparent mask")


def test_a_colour_mask_where_ids_are_expected(tmp_path):
    TREES["voc2012"](tmp_path)
    mask = open_dataset(tmp_path).records[0].mask
    with Image.open(mask) as image:
        image.convert("RGB").save(mask)
    refused(tmp_path, f"{mask.name} is a colour mask, but the classes in the table of voc2012 have no colours")


def test_missing_masks_are_found_when_opening(tmp_path):
    own(tmp_path)
    (tmp_path / "masks/p1.png").unlink()
    with pytest.raises(InputError, match=r"images/p1.png has no mask; expected .*masks/p1.png; add it"):
        open_dataset(tmp_path)
    (tmp_path / "masks/p2.png").unlink()
    with pytest.raises(InputError, match=r"\(2 of 3 pictures have none\)"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, strict=False)[0].name == "p0"
    with pytest.raises(InputError, match=r"p1.png has no mask"):
        open_dataset(tmp_path, strict=False)[1]


@pytest.mark.parametrize("layout", [name for name in TREES if name != "folder"])
def test_missing_mask_in_every_layout(tmp_path, layout):
    TREES[layout](tmp_path)
    record = open_dataset(tmp_path).records[-1]
    record.mask.unlink()
    refused(tmp_path, f"{record.image} has no mask; expected {record.mask}")


def test_unreadable_picture_and_mask(tmp_path):
    own(tmp_path)
    whole = (tmp_path / "images/p1.png").read_bytes()
    (tmp_path / "images/p1.png").write_bytes(whole[:300])
    refused(tmp_path, "images/p1.png cannot be decoded")
    (tmp_path / "images/p1.png").write_bytes(whole)
    (tmp_path / "masks/p1.png").write_bytes(b"not a picture")
    refused(tmp_path, "masks/p1.png is not a picture this program reads")
    (tmp_path / "masks/p1.png").write_bytes(b"")
    refused(tmp_path, "masks/p1.png is empty (0 bytes)")


def test_masks_that_lose_ids(tmp_path):
    own(tmp_path)
    (tmp_path / "masks/p1.png").unlink()
    grey(tmp_path / "masks/p1.jpg", label_map([0, 7, 9]))
    refused(tmp_path, "masks/p1.jpg: class numbers do not survive .jpg files")


def test_two_files_of_one_name(tmp_path):
    own(tmp_path)
    picture(tmp_path / "images/p1.jpg")
    refused(tmp_path, "images/p1.png and p1.jpg have the same name")


def test_empty_and_foreign_folders(tmp_path):
    refused(tmp_path, "is empty; expected images/, masks/ and classes.json")
    refused(tmp_path / "none", "none is not a folder")
    picture(tmp_path / "holiday.jpg")
    refused(tmp_path, "holds no data set this program recognises", "ade20k: images/training/ with annotations/training/",
            "leftImg8bit/train/", "ImageSets/Segmentation/train.txt", "--layout")  # fmt: skip
    picture(tmp_path / "images/a.png")
    grey(tmp_path / "masks/a.png", label_map([1]))
    refused(tmp_path, "has images/ and masks/ but no classes.json; add one")
    refused(tmp_path, "is not laid out as loveda; looked for Train/Rural/images_png/", layout="loveda")
    with pytest.raises(UsageError, match="unknown layout 'nothing'; expected one of folder, ade20k, cityscapes"):
        open_dataset(tmp_path, "nothing")


def test_own_folder_without_pictures_or_masks(tmp_path):
    own(tmp_path, count=0)
    refused(tmp_path, "has no folder images/; expected images/, masks/ and classes.json")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    refused(tmp_path, "holds no picture for split 'all'")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "is not JSON"),
        ("[]", 'expected an object with a list "classes"'),
        ('{"classes": []}', 'expected an object with a list "classes"'),
        ({"classes": [{"id": 1}]}, 'class 0 must be a name or an object with a "name"'),
        ({"classes": ["a", "a"]}, "name 'a' is used twice"),
        ({"classes": [{"name": "a", "id": 1}, {"name": "b", "id": 1}]}, "id 1 is used twice"),
        ({"classes": [{"name": "a", "id": 255}], "ignore": 255}, "id 255 is used twice"),
        ({"classes": [{"name": "a", "id": 70000}]}, "\"id\" of 'a' must be whole numbers from 0 to 65535, got 70000"),
        ({"classes": [{"name": "a", "id": "1"}]}, 'must be whole numbers from 0 to 65535, got "1"'),
        ({"classes": [{"name": "a", "id": 1}, "b"]}, "class 'b' has no \"id\" though others have"),
        (
            {"classes": [{"name": "a", "colour": [0, 0, 1]}, "b"]},
            "class 'b' has no \"colour\" though colours are in use",
        ),
        ({"classes": [{"name": "a", "colour": [0, 0, 256]}]}, "must be [red, green, blue] from 0 to 255"),
        ({"classes": [{"name": "a", "colour": "red"}]}, "must be [red, green, blue] from 0 to 255"),
        (
            {"classes": [{"name": "a", "color": [1, 2, 3]}]},
            "unknown key 'color' in class 0; known are name, id, colour",
        ),
        ({"classes": ["a"], "ignored": 3}, "unknown key 'ignored' in the file"),
        ({"classes": [{"name": "a", "synonyms": "b"}]}, "\"synonyms\" of 'a' must be a list of texts"),
        ({"classes": ["a"], "templates": ["a photo"]}, "every template must hold one {}"),
        ({"classes": ["a", "b"], "masks": "threshold"}, '"threshold" with exactly one class'),
    ],
)
def test_bad_classes(tmp_path, body, words):
    own(tmp_path)
    (tmp_path / "classes.json").write_text(body if isinstance(body, str) else json.dumps(body))
    refused(tmp_path, "classes.json", words)


def test_missing_classes_file(tmp_path):
    own(tmp_path)
    (tmp_path / "classes.json").unlink()
    refused(tmp_path, "classes.json cannot be read", layout="folder")


def test_labels_of_pascal_context_must_be_listed(tmp_path):
    TREES["pascal-context-mat"](tmp_path)
    text = (tmp_path / "labels.txt").read_text()
    (tmp_path / "labels.txt").write_text(text.replace("dog", "dgo"))
    refused(tmp_path, "labels.txt does not list the label 'dog'")
    (tmp_path / "labels.txt").unlink()
    refused(tmp_path, "labels.txt not found")
    (tmp_path / "labels.txt").write_text(text)
    open_dataset(tmp_path).records[0].mask.write_bytes(b"none")
    refused(tmp_path, ".mat cannot be read")


def test_four_bit_grey_keeps_its_numbers(tmp_path):
    """Pillow stretches such pictures to 0..255; ids must not be stretched."""
    classes = [{"name": "a", "id": 3}, {"name": "b", "id": 15}]
    own(tmp_path, classes=classes, count=0, ignore_colour=[])
    values = label_map([3, 15, 0])
    picture(tmp_path / "images/x.png")
    (tmp_path / "masks").mkdir()
    rows = b"".join(b"\0" + bytes(row[::2] << 4 | row[1::2]) for row in values.astype(np.uint8))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 4, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "masks/x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.array_equal(open_dataset(tmp_path)[0].ids, np.select([values == 3, values == 15], [0, 1], IGNORE))


def test_classes_by_order_when_no_id_is_given(tmp_path):
    own(tmp_path, classes=["a", "b", "c"], count=0, ignore=7, ignore_colour=[])
    picture(tmp_path / "images/x.png")
    grey(tmp_path / "masks/x.png", label_map([0, 1, 2, 7]))
    ids = open_dataset(tmp_path)[0].ids
    assert np.array_equal(ids, np.where(label_map([0, 1, 2, 7]) == 7, IGNORE, label_map([0, 1, 2, 7])))
    assert CLASSES[0]["name"] == "road"
