"""Pictures of rare classes are drawn more often, by the repeat factors of LVIS; batches stay functions of (seed, step)."""

import numpy as np
import pytest
import torch
from dataset_trees import grey, picture

from digseg_engine.data.balance import class_presence, repeat_factors
from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.datasets import open_dataset
from digseg_engine.errors import UsageError

COUNT = 20


@pytest.fixture
def folder(tmp_path):
    """`common` is in every picture, `rare` in the last one alone."""
    for n in range(COUNT):
        picture(tmp_path / f"images/p{n:02d}.png", n, (16, 16))
        labels = np.zeros((16, 16), int)
        labels[:4] = 1 if n == COUNT - 1 else 2
        grey(tmp_path / f"masks/p{n:02d}.png", labels)
    (tmp_path / "classes.json").write_text(
        '{"classes": [{"name": "common", "id": 0}, {"name": "rare", "id": 1}, {"name": "often", "id": 2}]}'
    )
    return tmp_path


def drawn(nano, folder, balance, steps=300, **options):
    batches = folder_batches(
        nano.vae, str(folder), 32, 0, FolderOptions(balance=balance, workers=0, **options), folder / "cache"
    )
    pictures = np.concatenate([batches.load.reader.choose(step, 8)[0] for step in range(steps)])
    return batches, np.bincount(pictures, minlength=COUNT) / len(pictures)


def test_factors_are_those_of_the_paper():
    present = np.zeros((100, 3), bool)
    present[:, 0], present[:4, 1], present[3:19, 2] = True, True, True  # shares 1, 0.04, 0.16
    factors = repeat_factors(present, 0.25)
    assert factors[:4] == pytest.approx(2.5) and factors[4:19] == pytest.approx(1.25) and (factors[19:] == 1).all()
    assert (repeat_factors(present, 0.01) == 1).all() and (repeat_factors(np.zeros((3, 2), bool), 0.5) == 1).all()


def test_a_rare_class_is_drawn_more_often_and_nothing_else_changes(nano, folder):
    _, alike = drawn(nano, folder, 0.0)
    batches, balanced = drawn(nano, folder, 0.8)  # sqrt(0.8 / 0.05) = 4 times as often
    assert alike[-1] == pytest.approx(1 / COUNT, abs=0.015)
    assert balanced[-1] == pytest.approx(4 / (COUNT + 3), abs=0.025)
    assert balanced[:-1].max() < 1.5 / COUNT
    again, _ = drawn(nano, folder, 0.8, steps=1)
    for step in (5, 0, 17):
        assert torch.equal(again.batch(step, 3, 2).images, batches.batch(step, 3, 2).images)


def test_masks_are_read_once(folder):
    dataset, ticks = open_dataset(folder), []
    found = class_presence(dataset, folder / "kept.npy", lambda: ticks.append(1))
    assert found.shape == (COUNT, 3) and found.sum(0).tolist() == [COUNT, 1, COUNT - 1] and len(ticks) == COUNT
    assert np.array_equal(class_presence(dataset, folder / "kept.npy", lambda: ticks.append(1)), found)
    assert len(ticks) == COUNT


def test_a_share_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"balance must be a share of the pictures from 0 to 1, got 1\.5"):
        FolderOptions(balance=1.5)
