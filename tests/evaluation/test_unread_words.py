"""Words in the place of class names: who knows half of them keeps half of the IoU, and words of a class file are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import unread_words
from digseg_engine.evaluation.protocols import LabelledPictures

NAMES = list(unread_words.WORDS)
READ = {word: name for name, words in unread_words.WORDS.items() for word in words[:1]}  # the first word of every class


@pytest.fixture
def folder(tmp_path):
    """Two pictures of eleven stripes, one a class, whose number is the red of its pixels."""
    place = tmp_path / "camvid"
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True)
    ids = np.repeat(np.arange(11, dtype=np.uint8), 4)[None].repeat(32, 0)
    for number in range(2):
        Image.fromarray(np.stack([ids] * 3, -1)).save(place / "images" / f"{number}.png")
        Image.fromarray(ids).save(place / "masks" / f"{number}.png")
    classes = [{"name": name, "id": number} for number, name in enumerate(NAMES)]
    (place / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    (place / "test.txt").write_text("0\n1\n")
    return place


def predict(image, prompts):
    """The truth for every name and for the first word of each class; nothing for another word."""
    meant = [NAMES.index(READ.get(prompt, prompt)) if READ.get(prompt, prompt) in NAMES else -1 for prompt in prompts]
    return np.stack([np.where(image[..., 0] == k, 1.0, -1.0).astype(np.float32) for k in meant])


def test_what_is_not_understood_is_lost(folder):
    found = unread_words.measure(predict, LabelledPictures(folder, split="test"))
    assert found["trained_names"] == 1.0
    by_word = {row["word"]: row["iou"] for row in found["words"]}
    assert len(by_word) == sum(map(len, unread_words.WORDS.values())) == 20
    assert all((by_word[word] == 1.0) == (word in READ) for word in by_word)
    # In the second round two classes go by their one word again; what nobody claims falls to the first of the others, sky.
    assert found["share"] == pytest.approx((1 + (2 + 1 / 9) / 11) / 2, abs=1e-3)


def test_words_of_a_class_file_are_refused(folder):
    other = folder.parent / "streets"
    other.mkdir()
    other.joinpath("classes.json").write_text(
        json.dumps({"classes": [{"name": "car", "id": 0, "synonyms": ["motorcar"]}]})
    )
    with pytest.raises(SystemExit, match="motorcar: not words never read"):
        unread_words.main(["nowhere", "--data", str(folder)])
