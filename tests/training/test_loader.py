"""Reading ahead: echoed crops, threads and processes, steps in any order; a batch stays a function of (seed, step, count)."""

import os
import signal

import numpy as np
import pytest
from dataset_trees import grey, label_map, own
from PIL import Image

from digseg_engine.data import crops as cutting
from digseg_engine.data.crops import Window, cut_picture
from digseg_engine.data.datasets import Dataset, open_dataset
from digseg_engine.data.loader import APART, CropLoader, CropReader
from digseg_engine.errors import InputError, TrainingError

SPAN = 3 * APART  # steps after which every group of three is done


@pytest.fixture
def dataset(tmp_path):
    own(tmp_path / "data", count=6)
    return open_dataset(tmp_path / "data")


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("pictures", "variants", "images", "ids"))


class Counted(Dataset):
    """Notes the pictures that are decoded."""

    def read_reduced(self, i, most):
        self.decoded.append(i)
        return super().read_reduced(i, most)


def counted(dataset):
    made = Counted(dataset.layout, dataset.root, dataset.split, dataset.records)
    made.decoded = []
    return made


@pytest.mark.parametrize(("workers", "readers"), [(0, "threads"), (1, "threads"), (3, "threads"), (2, "processes")])
def test_echoed_batches_are_the_same_in_any_order_and_after_a_restart(dataset, workers, readers):
    reader = CropReader(dataset, 24, 5, echo=3)
    wanted = {step: CropLoader(reader, 0)(step, 2) for step in range(2 * SPAN + 3)}
    steps = [*range(SPAN + 5), 3, 2 * SPAN, 2 * SPAN + 1, 7]
    orders = (steps, range(9, 2 * SPAN, 2), range(SPAN - 1, SPAN + 6), (13, 13, 16, 19, 22, 25))
    for begin in orders[: 1 if readers == "processes" else None]:  # processes take seconds to begin
        load = CropLoader(reader, workers, readers)
        for step in begin:
            assert same(load(step, 2), wanted[step]), (step, begin)
    assert not same(wanted[0], CropLoader(reader, 0)(0, 3)) and not same(wanted[0], wanted[APART])


def test_a_picture_is_decoded_once_for_its_crops_and_neighbouring_steps_show_others(dataset):
    for echo, times in ((1, 3), (3, 1)):
        for workers in (0, 2):
            reader = CropReader(counted(dataset), 24, 0, echo=echo)
            load = CropLoader(reader, workers)
            batches = [load(step, 2) for step in range(SPAN)]
            ahead = 2 * len(load._tasks)
            assert len(reader.dataset.decoded) - ahead <= times * APART * 2 <= len(reader.dataset.decoded)
    assert all(np.array_equal(batches[s].pictures, batches[s + APART].pictures) for s in range(2 * APART))
    assert not any(np.array_equal(batches[s].images, batches[s + APART].images) for s in range(2 * APART))
    assert sum(np.array_equal(batches[s].pictures, batches[s + 1].pictures) for s in range(APART - 1)) <= 1
    plain = CropLoader(CropReader(dataset, 24, 0), 0)
    assert len({tuple(plain(step, 2).pictures) for step in range(SPAN)}) > APART


def test_processes_that_take_turns_decode_their_own_pictures_alone(dataset):
    for turns in (2, 4, 8):
        total = 0
        for first in range(turns):
            reader = CropReader(counted(dataset), 24, 0, echo=2)
            load = CropLoader(reader, 0)
            for step in range(first, 2 * APART, turns):
                load(step, 2)
            total += len(reader.dataset.decoded)
        assert total == 2 * APART, turns


def test_what_is_held_ready_stays_bounded(dataset):
    load = CropLoader(CropReader(dataset, 24, 0, echo=3), 2)
    most = 0
    for step in range(4 * SPAN):
        load(step, 1)
        most = max(most, sum(len(task.steps) for task in load._tasks.values()))
    assert most <= SPAN + 3 * load.ahead
    load(1000, 1)
    assert sum(len(task.steps) for task in load._tasks.values()) <= 3 * (load.ahead + 2)


def test_the_quick_resampling_is_pillows():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for side in (24, 64, 130):
        for window in (Window(3, 5, 40, False), Window(-9, -14, 98, True), Window(2, 1, 64, True)):
            square = np.pad(image, ((20, 20), (20, 20), (0, 0)), mode="edge")
            top, left = window.top + 20, window.left + 20
            piece = Image.fromarray(square[top : top + window.span, left : left + window.span])
            expected = np.asarray(piece.resize((side, side), Image.Resampling.BILINEAR)).astype(int)
            expected = expected[:, ::-1] if window.mirrored else expected
            got = cut_picture(image, (90, 70), window, side)
            assert np.abs(got - expected).max() <= 1 and cutting.SMALLEST == 8


@pytest.mark.parametrize("readers", ["threads", "processes"])
def test_a_bad_file_is_named_by_the_worker_that_met_it(dataset, readers):
    grey(dataset.root / "masks/p3.png", label_map([5]))
    load = CropLoader(CropReader(dataset, 24, 0, echo=2), 2, readers)
    with pytest.raises(InputError, match=r"masks/p3.png: unknown id 5"):
        [load(step, 2) for step in range(40)]


@pytest.mark.skipif(os.name != "posix", reason="ends a process by signal")
def test_a_reading_process_that_is_killed_is_said(dataset):
    load = CropLoader(CropReader(dataset, 24, 0), 1, "processes")
    load(0, 2)
    for process in list(load._pool._processes.values()):
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"a process that reads pictures was ended from outside.*fewer --workers"):
        [load(step, 2) for step in range(1, 400)]
