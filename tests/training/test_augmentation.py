"""Changes of pictures: drawn from the seed and the step, labels stay with their pixels, nothing changes without being asked."""

import numpy as np
import pytest
import torch
from conftest import run_command
from dataset_trees import own

from digseg_engine.data.augmentation import augment, parse_kinds
from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.crops import Window, cut_labels, cut_picture, draw_window
from digseg_engine.data.datasets import IGNORE
from digseg_engine.errors import UsageError


def make(nano, folder, **options):
    return folder_batches(nano.vae, str(folder), 32, 0, FolderOptions(**options), folder / "cache")


def test_augmented_batches_are_pure_and_kinds_do_what_they_say(nano, tmp_path):
    pytest.importorskip("kornia")
    own(tmp_path, count=4)
    plain = [make(nano, tmp_path, workers=0).batch(step, 4, 2) for step in range(4)]
    for kinds in (("colour",), ("blur",), ("rotation",), ("scale",), ("colour", "scale", "rotation", "blur")):
        first, second = (make(nano, tmp_path, workers=workers, augment=kinds) for workers in (0, 2))
        for step in (2, 0, 3, 1):
            mine, other = first.batch(step, 4, 2), second.batch(step, 4, 2)
            assert torch.equal(mine.images, other.images) and torch.equal(mine.latents, other.latents)
            assert torch.equal(mine.masks, other.masks) and mine.queries == other.queries
            assert mine.images.min() >= -1 and mine.images.max() <= 1
        changed = [not torch.equal(first.batch(step, 4, 2).images, plain[step].images) for step in range(4)]
        moved = [not torch.equal(first.batch(step, 4, 2).labels.ids, plain[step].labels.ids) for step in range(4)]
        assert any(changed) and any(moved) == bool({"scale", "rotation"} & set(kinds)), kinds


def test_colour_changes_no_hue_and_blur_softens_some():
    pytest.importorskip("kornia")
    images = torch.tensor([0.4, -0.2, -0.6])[None, :, None, None].expand(64, 3, 8, 8).clone()
    images[:, :, ::2] += 0.1
    coloured = augment(images, ["colour"], np.random.default_rng(0))
    assert (coloured[:, 0] > coloured[:, 1]).all() and (coloured[:, 1] > coloured[:, 2]).all()  # still orange
    assert coloured.mean((1, 2, 3)).std() > 0.05
    blurred = augment(images, ["blur"], np.random.default_rng(0))
    soft = (blurred != images).flatten(1).any(1)
    assert 5 < soft.sum() < 30
    assert (blurred.std((1, 2, 3)) <= images.std((1, 2, 3)) + 1e-6).all()
    both = augment(images, ["colour", "blur"], np.random.default_rng(0))
    assert torch.equal(both[~soft], coloured[~soft])  # the same factors, with the other kind and without


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [-15.0, 7.0, 90.0])
def test_a_turned_window_keeps_labels_on_their_pixels(angle, mirrored):
    """The picture's own colours encode row and column, and so do its labels."""
    shape = (60, 80)
    rows, columns = np.indices(shape)
    ids = (rows * shape[1] + columns).astype(np.int16)
    image = np.stack([rows * 3, columns * 3, np.zeros(shape)], -1).astype(np.uint8)
    for window in (
        Window(10, 20, 40, mirrored, angle),
        Window(-10, -5, 80, mirrored, angle),
        Window(20, 30, 16, mirrored, angle),
    ):
        crop, labels = cut_picture(image, shape, window, 32), cut_labels(ids, window, 32)
        assert crop.shape == (32, 32, 3) and labels.shape == (32, 32)
        inside = labels != IGNORE
        assert inside.sum() > 200
        y, x = labels[inside] // shape[1], labels[inside] % shape[1]
        near = window.span / 32 + 1.5
        assert np.abs(crop[inside][:, 0] / 3 - y).max() <= near and np.abs(crop[inside][:, 1] / 3 - x).max() <= near
    upright = cut_labels(ids, window._replace(angle=0.0), 32)
    middle = cut_labels(ids, window._replace(angle=0.001), 32)
    assert (middle == upright).mean() > 0.9 and not np.array_equal(labels, upright)


def test_windows_are_the_same_but_for_what_was_asked():
    for seed in range(30):
        plain, turned, scaled = (
            draw_window(np.random.default_rng(seed), 400, 600, kinds) for kinds in ((), ("rotation",), ("scale",))
        )
        assert turned._replace(angle=0.0) == plain and 0 < abs(turned.angle) <= 15 and scaled.span <= plain.span
    spans = [draw_window(np.random.default_rng(seed), 400, 600, ("scale",)).span for seed in range(200)]
    assert min(spans) < 100


def test_refused_augmentation(tmp_path):
    assert parse_kinds("blur, colour") == ("colour", "blur") and parse_kinds("") == ()
    with pytest.raises(UsageError, match="unknown augmentation 'hue'; expected some of colour, scale, rotation, blur"):
        parse_kinds("hue")
    with pytest.raises(UsageError, match="cached crops keep their latents"):
        FolderOptions(cached_crops=2, augment=("colour",))
    FolderOptions(cached_crops=2, augment=("rotation",))
    own(tmp_path / "data")
    done = run_command("digseg", "train", "--init", "digseg-tiny", "--augment", "blur", cwd=tmp_path)
    assert done.returncode == 2 and "--augment has no effect without --data" in done.stderr
