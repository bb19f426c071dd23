"""The bench of words: which are asked, what counts as found, and that a better placed word raises the share."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from benchmarks import word_neighbours
from benchmarks.word_neighbours import Questions, measure, questions

TEXTS = ("tree", "car", "road", "oak", "taxi", "lane", "maybe", "oak tree")


@pytest.fixture
def lexicon(tmp_path):
    """Three classes at right angles, a word near each of them, one between two of them, and a phrase."""
    axes = F.normalize(torch.eye(3) - 1 / 3, dim=-1)
    near = F.normalize(axes + 0.1 * axes.roll(1, 0), dim=-1)
    vectors = torch.cat([axes, near, F.normalize(axes[:1] + axes[1:2], dim=-1), axes[:1]])
    save_file(
        {"vectors": vectors}, tmp_path / "lexicon.safetensors", metadata={"texts": json.dumps(TEXTS), "known": "0"}
    )
    return tmp_path / "lexicon.safetensors"


def test_words_of_which_the_sentence_encoder_is_sure_are_asked(lexicon):
    asked = questions(lexicon)
    assert set(asked.names) == {"car", "road", "tree"}
    assert asked.words == ["oak", "taxi", "lane"]  # no phrase, and not what lies between two
    assert [asked.names[i] for i in asked.answers] == ["tree", "car", "road"]


def test_the_share_is_of_words_whose_nearest_class_is_the_right_one(nano, monkeypatch):
    places = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [-1.0, -1.0], "near a": [0.9, 0.2], "near b": [0.3, 0.8]}
    monkeypatch.setattr(
        word_neighbours, "features", lambda checkpoint, texts: torch.tensor([places[text] for text in texts])
    )
    words = ["near a", "near b"]
    assert measure(nano, Questions(["a", "b", "c"], words, torch.tensor([0, 1])))["nearest"] == 1.0
    found = measure(nano, Questions(["a", "b", "c"], words, torch.tensor([0, 2])))
    assert found == {"nearest": 0.5, "nearest_three": 1.0}


def test_features_are_of_the_end_and_of_the_last_word(nano):
    found = word_neighbours.features(nano, ["red circle", "circle"])
    assert found.shape == (2, 2 * nano.text_encoder.config.hidden_size)
    assert not torch.allclose(found[0], found[1])
    again = word_neighbours.features(nano, ["circle"])
    assert torch.allclose(again[0], found[1], atol=1e-5)  # however long the others are
