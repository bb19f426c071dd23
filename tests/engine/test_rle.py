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
