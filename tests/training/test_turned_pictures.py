"""Pictures that a camera stored turned: the mask is turned alike, or its size decides, or the picture is refused by name."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.loader import CropLoader, CropReader
from digseg_engine.data.turning import shown_shape, turned
from digseg_engine.errors import InputError
from digseg_engine.reading import open_image, orientation_of

VALUES = np.kron(np.arange(1, 7).reshape(2, 3), np.ones((8, 16), int)).astype(np.uint8)  # [16, 48], six blocks


def write(folder, turn, values=VALUES, suffix="png", mask_of=lambda stored: stored, mask_tag=0, **body):
    """A picture whose red is ten times the class, stored turned; `values` are as stored."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = Image.fromarray(np.dstack([values * 10, values * 0, values * 0]))
    picture.save(folder / f"images/a.{suffix}", exif=exif)
    own = Image.Exif()
    if mask_tag:
        own[0x0112] = mask_tag
    Image.fromarray(mask_of(values)).save(folder / "masks/a.png", exif=own)
    (folder / "classes.json").write_text(
        json.dumps({"classes": [{"name": f"c{i}", "id": i} for i in range(1, 7)], **body})
    )
    return open_dataset(folder)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_are_turned_as_pillow_turns_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(VALUES).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turned(VALUES, orientation), shown) and shown_shape(tmp_path / "x.png") == shown.shape


@pytest.mark.parametrize("late", [False, True])
def test_a_png_that_says_it_behind_its_pixels_is_turned_too_and_no_other_is_decoded_for_it(tmp_path, late):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(VALUES).save(tmp_path / "x.png", exif=exif if late else None)
    body = (tmp_path / "x.png").read_bytes()
    if late:
        start = body.index(b"eXIf") - 4
        stop = start + 12 + int.from_bytes(body[start : start + 4], "big")
        end = body.index(b"IEND") - 4
        (tmp_path / "x.png").write_bytes(body[:start] + body[stop:end] + body[start:stop] + body[end:])
    with (tmp_path / "x.png").open("rb") as file:
        image = open_image(file)
        assert orientation_of(image) == (6 if late else 1) and bool(image.tile) != late  # tiles are still to be decoded
        image.load()
        assert np.array_equal(image, VALUES)


def fits(dataset):
    item = dataset[0]
    assert np.array_equal(item.image[..., 0], (item.ids + 1) * 10)
    assert np.array_equal(dataset.read_ids(0), item.ids)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_size_of_a_mask_tells_how_it_was_drawn(tmp_path, orientation, suffix):
    fits(write(tmp_path / "stored", orientation, suffix=suffix))
    fits(
        write(
            tmp_path / "shown",
            orientation,
            suffix=suffix,
            mask_of=lambda v: np.ascontiguousarray(turned(v, orientation)),
        )
    )


@pytest.mark.parametrize(("orientation", "values"), [(3, VALUES), (2, VALUES), (6, VALUES.repeat(3, 0))])
def test_where_the_size_tells_nothing_the_data_set_must_say_it(tmp_path, orientation, values):
    with pytest.raises(
        InputError, match=rf'a.png is stored turned \(EXIF orientation {orientation}\).*"orientation": "shown"'
    ):
        write(tmp_path, orientation, values)[0]
    fits(write(tmp_path, orientation, values, orientation="stored"))
    as_shown = np.ascontiguousarray(turned(values, orientation))
    fits(write(tmp_path, orientation, values, mask_of=lambda v: as_shown, orientation="shown"))
    fits(write(tmp_path, orientation, values, mask_tag=orientation))  # a mask that says it itself
    with pytest.raises(InputError, match='"orientation" must be "shown" or "stored", got "up"'):
        write(tmp_path, orientation, orientation="up")


def test_crops_of_large_jpegs_are_decoded_small_and_show_the_same(tmp_path):
    values = np.kron(np.arange(1, 7).reshape(2, 3), np.ones((400, 400), int)).astype(np.uint8)
    for suffix, orientation in (("jpg", 6), ("png", 6)):
        dataset = write(tmp_path / suffix, orientation, values, suffix)
        crops = CropLoader(CropReader(dataset, 40, 0), workers=0)(0, 12)
        inside = crops.ids >= 0
        wrong = np.abs(crops.images[..., 0][inside].astype(int) - (crops.ids[inside] + 1) * 10) > 4
        assert wrong.mean() < 0.08  # borders of classes only
    jpeg = open_dataset(tmp_path / "jpg")
    assert [jpeg.read_reduced(0, most).shape[:2] for most in (1, 2, 3, 9)] == [
        (1200, 800),
        (600, 400),
        (600, 400),
        (150, 100),
    ]
    assert open_dataset(tmp_path / "png").read_reduced(0, 8).shape[:2] == (1200, 800)
