"""Prompts: checked with clear errors, encoded as promised."""

import numpy as np
import pytest

from digseg_engine.errors import BundleError, InputError
from digseg_engine.text import MAX_TOKENS, PromptTokenizer, check_prompts, pad_tokens


@pytest.fixture
def tokenizer(raw_tokenizer):
    return PromptTokenizer(raw_tokenizer)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "no prompt given"),
        (["grass", "  "], "prompt 1 is empty"),
        (["", "grass"], "prompt 0 is empty"),
        ("red circle", "must be a list of texts"),
        (["grass", 7], "prompt 1 must be text, got int"),
    ],
)
def test_unusable_prompts_are_refused(prompts, words):
    with pytest.raises(InputError, match=words):
        check_prompts(prompts)


def test_rows_start_end_and_pad(tokenizer):
    ids, mask = tokenizer.encode(["red circle", "the red circle that is on the left"])
    assert ids.dtype == np.int64 and mask.dtype == np.bool_ and ids.shape == mask.shape == (2, 16)
    for row, live in zip(ids, mask):
        assert row[0] == 0 and row[live.sum() - 1] == 1 and (row[live.sum() :] == 1).all()
        assert not live[live.sum() :].any()
    assert tokenizer.encode(["red circle"])[0].shape == (1, 8)


def test_case_and_spaces_do_not_matter(tokenizer):
    assert tokenizer.ids("Red   CIRCLE ") == tokenizer.ids("red circle")


@pytest.mark.parametrize("prompt", ["crème brûlée", "🍓", "日本語", "a\tb\nc", "x" * 60, "naïve café №5"])
def test_any_text_is_encoded(tokenizer, prompt):
    ids = tokenizer.ids(prompt)
    assert 3 <= len(ids) <= MAX_TOKENS and max(ids) < len(tokenizer.vocabulary())


def test_a_prompt_over_77_tokens_is_refused_not_cut(tokenizer):
    fits = " ".join(["red"] * 75)
    assert len(tokenizer.ids(fits)) == 77
    with pytest.raises(InputError, match=r"has 78 tokens, at most 77 fit.*shorten it"):
        tokenizer.encode([fits + " red"])


def test_padding_repeats_the_end():
    ids, mask = pad_tokens([[0, 5, 1], [0, 1]])
    assert ids.tolist() == [[0, 5, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]] and mask.sum(1).tolist() == [3, 2]


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        PromptTokenizer.load(tmp_path / "tokenizer.json")


def test_a_generator_of_prompts_is_refused_before_it_is_used_up():
    from digseg_engine.errors import InputError
    from digseg_engine.text import check_prompts

    with pytest.raises(InputError, match=r"prompts must be a list of texts, got generator; write list"):
        check_prompts(text for text in ["road"])
    assert check_prompts(("road",)) == ["road"]
