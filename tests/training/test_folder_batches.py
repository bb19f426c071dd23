"""Batches from folders: pure functions of (seed, step) whatever the workers, ignored pixels marked, prompts drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_trees import TREES, grey, label_map, own, picture
from small_stage import short_run

from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.crops import draw_crop
from digseg_engine.data.datasets import IGNORE, Item, open_dataset
from digseg_engine.data.loader import CropLoader, CropReader
from digseg_engine.errors import InputError, UsageError
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.training.recipes.finetune import open_batches


@pytest.fixture
def folder(tmp_path):
    own(tmp_path / "data", count=5)
    return tmp_path / "data"


def make(nano, folder, cache, seed=0, **options):
    return folder_batches(nano.vae, str(folder), 32, seed, FolderOptions(**options), cache)


class Idle:
    """Takes the place of an encoder that must not be asked any more."""

    device = torch.device("cpu")


def same(a, b):
    tensors = zip((a.images, a.latents, a.masks, a.valid), (b.images, b.latents, b.masks, b.valid))
    return a.queries == b.queries and all(torch.equal(x, y) for x, y in tensors)


def test_batches_are_pure_whatever_the_workers_and_the_order(nano, folder, tmp_path):
    plain = make(nano, folder, tmp_path / "c", workers=0)
    wanted = {step: plain.batch(step, 3, 5) for step in (0, 1, 2, 3, 4, 6, 8)}
    for workers, order in ((1, (0, 1, 2, 3)), (3, (0, 2, 4, 6, 8)), (2, (3, 1, 0, 0, 8))):
        ahead = make(nano, folder, tmp_path / "c", workers=workers)
        for step in order:
            assert same(ahead.batch(step, 3, 5), wanted[step]), (workers, step)
    assert not same(make(nano, folder, tmp_path / "c", seed=1).batch(0, 3, 5), wanted[0])
    assert not torch.equal(wanted[0].images, wanted[1].images)


def test_a_batch_says_what_it_shows(nano, folder, tmp_path):
    batches = make(nano, folder, tmp_path)
    seen = set()
    for step in range(6):
        batch = batches.batch(step, 4, 6)
        assert batch.images.shape == (4, 3, 32, 32) and batch.masks.shape == (4, 6, 32, 32)
        assert batch.valid.shape == (4, 1, 32, 32) and batch.valid.min() == 0 and batch.valid.max() == 1
        assert torch.equal(batch.latents, encode_image(nano.vae, batch.images))
        assert not (batch.masks * (1 - batch.valid)).any()
        where = {name: batch.masks[:, [q.name for q in batch.queries].index(name)] for name in ("road", "car")}
        assert torch.equal(where["road"] + where["car"], batch.valid[:, 0])  # every pixel is road, car or ignored
        seen |= {query.text for query in batch.queries}
    assert {"road", "car"} < seen and any("street" in text for text in seen)
    assert same(batch.to(torch.device("cpu")), batch)


def test_absent_classes_are_asked_too(nano, tmp_path):
    TREES["ade20k"](tmp_path)
    batch = make(nano, tmp_path, tmp_path / "c").batch(0, 2, 10)
    names = [query.name for query in batch.queries]
    present = {"wall", "building", "computer", "flag"}
    assert len(set(names)) == 10 and present < set(names)
    assert all(bool(batch.masks[:, k].any()) == (name in present) for k, name in enumerate(names))


def test_single_class_data_ask_for_things_that_are_not_there(nano, tmp_path):
    TREES["kvasir"](tmp_path)
    batches = make(nano, tmp_path, tmp_path / "c")
    batch = batches.batch(0, 2, 6)
    found = {query.name: bool(batch.masks[:, k].any()) for k, query in enumerate(batch.queries)}
    assert found.pop("polyp") and len(found) == 5 and not any(found.values())
    assert "polyp" in batches.names and "skin lesion" in batches.names
    single = [batches.batch(step, 1, 1).queries[0].name for step in range(40)]
    assert 25 < single.count("polyp") < 40


def test_without_ignored_pixels_there_is_no_valid_mask(nano, tmp_path):
    own(tmp_path, classes=["a", "b"], count=0, ignore=9, ignore_colour=[])
    for n in range(2):
        picture(tmp_path / f"images/{n}.png", n, (32, 32))
        grey(tmp_path / f"masks/{n}.png", label_map([0, 1], n, (32, 32)))
    assert make(nano, tmp_path, tmp_path / "c").batch(0, 2, 3).valid is None


@pytest.mark.parametrize("shape", [(40, 56), (64, 20), (9, 9)])
def test_crops_show_a_window_with_its_labels(shape):
    """The picture's own colours encode row and column, so every crop tells where it was cut."""
    rows, columns = np.indices(shape)
    ids = (rows * shape[1] + columns).astype(np.int16)
    image = np.stack([rows * 3, columns * 3, np.zeros(shape)], -1).astype(np.uint8)
    whole = 0
    for seed in range(60):
        crop, labels = draw_crop(np.random.default_rng(seed), Item(image, ids, "x"), 16)
        assert crop.shape == (16, 16, 3) and labels.shape == (16, 16)
        inside = labels != IGNORE
        assert inside.any()
        y, x = labels[inside] // shape[1], labels[inside] % shape[1]
        far = max(shape) / 16 + 1  # bilinear shrinking averages over about this many pixels
        assert np.abs(crop[inside][:, 0] / 3 - y).max() <= far and np.abs(crop[inside][:, 1] / 3 - x).max() <= far
        whole += bool((~inside).any())
    assert whole > 0 or shape[0] == shape[1]  # windows wider than the picture occur, and their rim is ignored


def test_kept_latents_are_those_of_the_fixed_crops(nano, folder, tmp_path):
    first = make(nano, folder, tmp_path / "cache", cached_crops=2)
    batches = [first.batch(step, 4, 3) for step in range(8)]
    again = make(nano, folder, tmp_path / "cache", cached_crops=2)
    assert all(same(again.batch(step, 4, 3), batches[step]) for step in reversed(range(8)))
    assert again.encode.done.sum() <= 10 and len(list((tmp_path / "cache").glob("*.f16"))) == 1
    again.encode.encode = Idle()  # everything is there: nothing is encoded any more
    assert same(again.batch(2, 4, 3), batches[2])
    for batch in batches:
        fresh = encode_image(nano.vae, batch.images)
        torch.testing.assert_close(
            batch.latents, fresh.half().float(), rtol=1e-3, atol=1e-4
        )  # one step of half precision
    crops = {batch.images[i].numpy().tobytes() for batch in batches for i in range(4)}
    assert len(crops) <= 10
    picture(folder / "images/p0.png", 99)  # an edited picture: other latents
    make(nano, folder, tmp_path / "cache", cached_crops=2).batch(0, 4, 3)
    assert len(list((tmp_path / "cache").glob("*.f16"))) == 2


def test_a_bad_file_met_by_a_reading_thread_is_named(folder):
    grey(folder / "masks/p3.png", label_map([5]))
    load = CropLoader(CropReader(open_dataset(folder), 32, 0), workers=2)
    with pytest.raises(InputError, match=r"masks/p3.png: unknown id 5"):
        [load(step, 2) for step in range(20)]


def test_training_data_that_cannot_be_used_is_refused(nano, folder, tmp_path):
    config = short_run(size=32)
    with pytest.raises(InputError, match=r"nowhere is not a folder; expected a folder of labelled pictures"):
        open_batches(nano, str(tmp_path / "nowhere"), config, tmp_path / "out")
    with pytest.raises(UsageError, match="has no split 'val'"):
        open_batches(nano, str(folder), replace(config, folder=FolderOptions(split="val")), tmp_path / "out")
    with pytest.raises(UsageError, match="must be 0 or more"):
        FolderOptions(workers=-1)
    batch = open_batches(nano, str(folder), config, tmp_path / "out").batch(0, 2, 2)
    assert batch.images.shape == (2, 3, 32, 32) and not (tmp_path / "out").exists()
