"""Run lengths against pycocotools: recorded answers always, and the library itself where it is installed."""

import numpy as np
import pytest

from digseg_engine.errors import InputError
from digseg_engine.runtime.rle import decode, encode


def corner_and_block():
    mask = np.zeros((9, 7), np.bool_)
    mask[2:6, 1:5] = mask[8, 6] = True
    return mask


# counts printed by pycocotools 2.0.11
RECORDED = [
    (corner_and_block(), ";4500000?M"),
    (
        np.random.default_rng(7).random((12, 11)) < 0.4,
        "11100020010ON043LN0O0010012ON0410ON1N001ON2031N1MN10O10O21O1OO000O0",
    ),
]


@pytest.mark.parametrize(("mask", "counts"), RECORDED)
def test_recorded_answers(mask, counts):
    assert encode(mask) == {"size": list(mask.shape), "counts": counts}
    assert np.array_equal(decode({"size": list(mask.shape), "counts": counts}), mask)


def masks():
    rng = np.random.default_rng(0)
    yield np.zeros((5, 4), np.bool_)
    yield np.ones((5, 4), np.bool_)
    for _ in range(60):
        height, width = rng.integers(1, 60, 2)
        yield rng.random((height, width)) < rng.random()
    block = np.zeros((700, 900), np.bool_)
    block[100:650, 33:800] = True
    yield block


def test_what_is_encoded_is_decoded():
    for mask in masks():
        assert np.array_equal(decode(encode(mask)), mask)


def test_against_pycocotools():
    reference = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        assert encode(mask)["counts"] == reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def test_damaged_counts_are_an_error():
    with pytest.raises(InputError, match="run lengths add up to"):
        decode({"size": [9, 7], "counts": ";450000"})


def test_every_form_of_counts_is_read():
    mask, counts = RECORDED[0]
    size = list(mask.shape)
    runs = [11, 4, 5, 4, 5, 4, 5, 4, 20, 1]
    for form in (counts, counts.encode(), bytearray(counts.encode()), runs, tuple(runs), np.array(runs)):
        assert np.array_equal(decode({"size": size, "counts": form}), mask), form
    assert np.array_equal(decode({"size": [2, 3], "counts": [1, 2, 3]}), np.array([[0, 1, 0], [1, 0, 0]], np.bool_))


WRONG = [
    {"size": [9, 7]}, {"counts": ""}, {"size": [9], "counts": "0"}, {"size": [9, 7], "counts": None},
    {"size": [2, 2], "counts": "\u00e9\u4e2d"}, {"size": [2, 2], "counts": "\u00e9".encode()},
    {"size": [2, 2], "counts": ""}, {"size": [2, 2], "counts": [1.5, 2.5]}, {"size": [2, 2], "counts": [-1, 5]},
    {"size": [2, 2], "counts": "4P"}, {"size": [-2, -2], "counts": [4]}, {"size": None, "counts": "4"},
]  # fmt: skip


@pytest.mark.parametrize("rle", WRONG)
def test_what_is_no_run_lengths_is_an_error_of_ours(rle):
    with pytest.raises(InputError, match="run lengths") as caught:
        decode(rle)
    assert "\n" not in str(caught.value)
