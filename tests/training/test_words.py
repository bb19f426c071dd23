"""A text encoder that learns words: near where the teacher says, the same in any wording, and as before in what it knew."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nano_models import build_nano
from safetensors.torch import save_file
from torch.nn import functional as F

from digseg_engine.data.query import TEMPLATES, plural
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import InputError
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.words import Lexicon, WordAlignment, WordsLoss, neighbourhoods
from digseg_engine.training.recipes.words import WordsConfig, inherit, kept_phrases, learn_words, read_lexicon
from digseg_engine.worlds.vocabulary import train_tokenizer

MEANINGS = {"car": ("car", "automobile", "vehicle", "taxi"), "tree": ("tree", "oak", "birch", "forest"),
            "water": ("water", "lake", "sea", "river")}  # fmt: skip
WORDS = [word for words in MEANINGS.values() for word in words]
STAGE = StageConfig(80, 12, 5e-3, warmup=5, clip=1.0, ema=0.8)


@pytest.fixture
def lexicon(tmp_path):
    """Twelve words in three groups."""
    random = torch.Generator().manual_seed(0)
    groups = F.normalize(torch.randn(3, 16, generator=random), dim=-1)
    vectors = F.normalize(groups.repeat_interleave(4, 0) + 0.1 * torch.randn(12, 16, generator=random), dim=-1)
    path = tmp_path / "lexicon.safetensors"
    save_file({"vectors": vectors}, path, metadata={"texts": str(WORDS).replace("'", '"'), "known": "4"})
    return path


def ends(checkpoint, texts):
    """Whitened features of the end tokens, without what all share."""
    text, mask = encode_text(checkpoint.text_encoder, checkpoint.tokenizer, texts)
    found = (
        text[torch.arange(len(texts)), mask.sum(1) - 1] - checkpoint.student.text_centre
    ) @ checkpoint.student.text_whiten
    return found.detach()


def test_words_come_near_where_the_teacher_says_in_any_wording(nano_folder, lexicon, tmp_path):
    made = load_checkpoint(learn_words(str(nano_folder), lexicon, tmp_path / "out", WordsConfig(STAGE, 900)))
    before = load_checkpoint(nano_folder)

    def alike(checkpoint, say=str):
        found = ends(checkpoint, [say(word) for word in WORDS])
        angles = F.normalize(found - found.mean(0), dim=-1) @ F.normalize(found - found.mean(0), dim=-1).T
        same = torch.block_diag(*[torch.ones(4, 4)] * 3).bool()
        return float(angles[same & ~torch.eye(12).bool()].mean() - angles[~same].mean())

    assert alike(made) > 0.8 > 0.35 > alike(before)
    assert alike(made, TEMPLATES[4].format) > 0.8
    assert all(
        torch.equal(a, b) for a, b in zip(made.student.state_dict().values(), before.student.state_dict().values())
    )
    assert len(made.tokenizer.vocabulary()) > len(before.tokenizer.vocabulary())


def test_phrases_that_the_student_knows_stay_where_they_were(nano_folder, lexicon, tmp_path, monkeypatch):
    before, known = load_checkpoint(nano_folder), kept_phrases()[::50]

    def moved(folder):
        made = load_checkpoint(
            learn_words(str(nano_folder), lexicon, folder, WordsConfig(replace(STAGE, steps=40), 900))
        )
        return float((ends(made, known) - ends(before, known)).square().mean())

    kept = moved(tmp_path / "kept")
    monkeypatch.setattr("digseg_engine.training.objectives.words.KEPT_WEIGHT", 0.0)
    assert kept < 0.5 * moved(tmp_path / "free")


def test_names_of_data_sets_stay_where_asked(nano_folder, lexicon, tmp_path):
    start = learn_words(str(nano_folder), lexicon, tmp_path / "start", WordsConfig(STAGE, 900))
    before = load_checkpoint(start)

    def moved(keep):
        config = WordsConfig(replace(STAGE, steps=40), 900, keep_names=keep)
        made = load_checkpoint(learn_words(str(start), lexicon, tmp_path / str(keep), config))
        return float((ends(made, WORDS[:4]) - ends(before, WORDS[:4])).square().mean())

    assert moved(True) < 0.3 * moved(False)


def test_neighbours_are_the_nearest_ones_and_never_oneself(lexicon, monkeypatch):
    table = read_lexicon(lexicon)
    angles = table.centred() @ table.centred().T
    nearest = angles.fill_diagonal_(-2).topk(3).indices
    for strip in (5, 2048):  # in strips, and all at once
        monkeypatch.setattr("digseg_engine.training.objectives.words.STRIP", strip)
        assert torch.equal(table.neighbours(3), nearest)
    assert table.neighbours(100).shape == (12, 11)
    assert all(
        {row // 4} == set((found // 4).tolist()) for row, found in enumerate(table.neighbours(3))
    )  # of its group


def test_half_a_batch_are_neighbours_of_the_other_half(nano, lexicon):
    loss = WordsLoss(read_lexicon(lexicon), [], (nano.text_encoder, nano.tokenizer), nano.tokenizer, STAGE)
    loss.neighbours = loss.neighbours[:, :2]
    rows, texts = loss._draw(torch.Generator().manual_seed(1))
    assert len(rows) == STAGE.batch and [WORDS[row] for row in rows] == texts
    assert all(second in loss.neighbours[first] for first, second in zip(rows[:6], rows[6:]))


def test_a_phrase_is_no_neighbour_of_itself():
    found = neighbourhoods(torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.9, 0.2, 1.0]])).exp()
    assert torch.allclose(found.sum(1), torch.ones(3)) and torch.equal(found.diagonal(), torch.zeros(3))
    assert found[0, 1] == pytest.approx(0.5) and found[2, 0] > 0.99


def test_pieces_that_both_vocabularies_have_begin_with_their_former_weights(nano_preset, nano, raw_tokenizer):
    larger = PromptTokenizer(train_tokenizer(900, WORDS))
    wide = build_nano(replace(nano_preset, text={**nano_preset.text, "vocab_size": 900}), raw_tokenizer)
    inherit(wide.text_encoder, nano.text_encoder, larger, nano.tokenizer)
    for text in ("red circle", "the ring"):
        assert larger.ids(text) != nano.tokenizer.ids(text)  # other numbers, the same pieces
        old, _ = encode_text(nano.text_encoder, nano.tokenizer, [text])
        assert torch.allclose(encode_text(wide.text_encoder, larger, [text])[0], old, atol=1e-6)


def test_words_are_pieces_of_their_own_the_commonest_first():
    raw = train_tokenizer(2000, [*WORDS, *(f"word{chr(97 + i)}{chr(97 + k)}" for i in range(26) for k in range(26))])
    assert all(len(raw.encode(word).ids) == 3 for word in WORDS)
    assert len(raw.encode("red circle").ids) == 4


def test_the_loss_is_the_same_for_the_same_step_and_names_what_it_is_made_of(nano, lexicon):
    table = read_lexicon(lexicon)
    loss = WordsLoss(table, ["red circle", "a star"], (nano.text_encoder, nano.tokenizer), nano.tokenizer, STAGE)
    model = WordAlignment(nano.text_encoder, nano.student, 16)
    (first, parts), (again, _), (other, _) = loss(model, 3), loss(model, 3), loss(model, 4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert set(parts) == {"near", "similar", "neighbours", "kept", "worded"} and float(parts["kept"]) == pytest.approx(
        0, abs=1e-6
    )


def test_a_lexicon_that_is_none_is_refused(tmp_path):
    (tmp_path / "text").write_text("car")
    with pytest.raises(InputError, match=r"not a lexicon.*sentence_vectors"):
        read_lexicon(tmp_path / "text")
    with pytest.raises(InputError, match="a vector for each"):
        Lexicon(("car",), torch.zeros(2, 4))


def test_a_plural():
    many = {
        "road": "roads",
        "cell nucleus": "cell nuclei",
        "box": "boxes",
        "city": "cities",
        "grass": "grass",
        "trees": "trees",
    }
    assert {name: plural(name) for name in many} == many


def test_people_ask_for_scenes_in_the_same_templates_as_for_photographs(nano, tmp_path):
    from small_stage import short_run

    from digseg_engine.training.recipes.finetune import open_batches

    batches = open_batches(nano, "scenes:crops", short_run(size=32, scenes=32), tmp_path)
    rng = np.random.default_rng(0)
    said = {batches.phrase(rng, "weed").text for _ in range(400)}
    assert {"weed", "weeds", "segment the weed", "a photo of a weed", '"weed"'} <= said


def test_a_tokenizer_is_the_same_in_every_process(raw_tokenizer):
    code = "from digseg_engine.worlds.vocabulary import train_tokenizer; print(train_tokenizer(704).to_str())"
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == raw_tokenizer.to_str()
    added = json.loads(raw_tokenizer.to_str())["added_tokens"]
    assert [token["content"] for token in added] == ["<|startoftext|>", "<|endoftext|>"]
