"""The presence readout: it learns what is there, is asked hard negatives, and nothing else of the student moves by a bit."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_command
from dataset_trees import own
from nano_models import build_nano
from small_stage import SHORT, short_run
from test_learning import FourPictures

from digseg_engine.data.batch import Batch, Planes, choose_names
from digseg_engine.data.batches import FolderOptions
from digseg_engine.data.mixtures import MixedBatches
from digseg_engine.data.negatives import hard_names
from digseg_engine.data.shares import scored_shares
from digseg_engine.errors import UsageError
from digseg_engine.model.pretrained import add_presence, load_checkpoint
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.objectives.learner import learner_of
from digseg_engine.training.objectives.presence import PresenceLoss, PresenceReader, known_presence
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.recipes.finetune import finetune, open_batches
from digseg_engine.worlds.domains import SEEN_PAIRS
from digseg_engine.worlds.pool import TRAIN_NAMES


class Pictures(FourPictures):
    """The four pictures, and in the last two the bar is gone."""

    def __init__(self, vae):
        super().__init__(vae)
        self.chosen_by = None
        bars = self.masks[2:, 1:2]
        ground = torch.tensor([0.0, 0.2, 0.0])[:, None, None]
        self.images[2:] = torch.where(bars > 0, ground, self.images[2:])
        self.masks[2:, 2:3] += bars
        self.masks[2:, 1] = 0

    def asked_by(self, choose):
        self.chosen_by = choose
        return self


@pytest.fixture
def reading(nano):
    add_presence(nano, 8)
    return nano


def test_a_readout_learns_on_four_pictures_and_nothing_else_moves(reading, tmp_path):
    pictures, before = Pictures(reading.vae), {k: v.clone() for k, v in reading.student.state_dict().items()}
    stage = StageConfig(60, 4, 0.02, prompts=4, warmup=2)
    loss = PresenceLoss(pictures, reading.text_encoder, reading.tokenizer, stage)
    assert pictures.chosen_by is hard_names
    reader = PresenceReader(reading.student)
    first = float(loss(reader, 0)[0].detach())
    train_stage("presence", reader, loss, stage, tmp_path, False)
    value, parts = loss(reader, 0)
    assert float(value.detach()) < 0.5 * first and float(parts["right"]) == 1.0
    moved = {name for name, weight in reading.student.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved and all(name.startswith("read_presence.") for name in moved)


def test_presence_learnt_beside_masks_reaches_the_trunk_and_is_asked_hard_negatives(reading):
    """The same student, step and batch: what the presence loss adds to every gradient of the trunk."""
    pictures = Pictures(reading.vae)
    parts = (reading.vae, reading.text_encoder, reading.tokenizer, reading.reference, reading.schedule)
    loss = DistillationLoss(pictures, *parts, StageConfig(60, 4, 0.02, prompts=4))
    reading.student.requires_grad_(True)
    gradients = []
    for module in (learner_of(reading.student), learner_of(reading.student, presence=True)):
        reading.student.zero_grad()
        value, said = loss(module, 1)
        value.backward()
        gradients.append({name: p.grad.clone() for name, p in reading.student.named_parameters() if p.grad is not None})
    alone, beside = gradients
    assert pictures.chosen_by is hard_names and {"presence_missed", "presence_false", "presence_right"} <= said.keys()
    assert all(name in beside for name, _ in reading.student.read_presence.named_parameters(prefix="read_presence"))
    moved = [name for name in alone if name.startswith("unet.") and not torch.equal(alone[name], beside[name])]
    assert len(moved) > 0.8 * sum(name.startswith("unet.") for name in alone)


def test_a_student_without_a_readout_cannot_learn_presence(nano):
    assert learner_of(nano.student) is nano.student
    with pytest.raises(UsageError, match="no presence readout"):
        learner_of(nano.student, presence=True)


def test_painted_scenes_are_scored_once_whatever_their_sizes():
    said = ["scenes@32", "scenes", "streets=2", "scenes:crops@64=0.5", "scenes-of-mine@7"]
    assert [share.data for share in scored_shares(said)] == ["scenes", "streets", "scenes:crops", "scenes-of-mine@7"]


def test_small_scenes_come_in_batches_of_as_many_pixels_and_dense_labels_where_they_are(reading, tmp_path):
    own(tmp_path / "streets", count=5)
    data = [f"{tmp_path}/streets", "scenes:objects@32"]
    settings = short_run(size=64, scenes=32, folder=FolderOptions(workers=0))
    mixed = open_batches(reading, data, settings, tmp_path / "out")
    shapes = {batch.images.shape: batch for batch in (mixed.batch(step, 2, 4) for step in range(8))}
    assert {(2, 3, 64, 64), (8, 3, 32, 32)} == set(shapes)
    parts = (reading.vae, reading.text_encoder, reading.tokenizer, reading.reference, reading.schedule)
    loss = DistillationLoss(mixed, *parts, StageConfig(8, 2, 0.02, prompts=4))
    learner = learner_of(reading.student, dense=True, presence=True)
    said = [loss(learner, step)[1] for step in range(8)]
    assert [("dense" in parts) for parts in said] == [mixed.batch(step, 2, 4).drawn is not None for step in range(8)]


def test_half_of_what_is_asked_is_not_there_and_much_of_it_is_alike():
    rng, present = np.random.default_rng(0), ["red circle", "blue star", "red", "circle", "blue", "star"]
    kinds = Counter[str]()
    for _ in range(50):
        names = hard_names(rng, present, TRAIN_NAMES, 12)
        assert len(set(names)) == 12
        there = {word for name in names if name in present for word in name.split()}
        absent = [name for name in names if name not in present]
        kinds.update(absent=len(absent), alike=sum(bool(there & set(name.split())) for name in absent))
    assert kinds["absent"] == 50 * 6
    assert kinds["alike"] >= 50 * 3
    easy = [choose_names(np.random.default_rng(i), present, TRAIN_NAMES, 12) for i in range(50)]
    assert sum(name in SEEN_PAIRS and name not in present for names in easy for name in names) < kinds["absent"]


def test_a_small_vocabulary_is_asked_again():
    assert hard_names(np.random.default_rng(0), ["nucleus"], ("nucleus", "road"), 6).count("road") == 3
    assert hard_names(np.random.default_rng(0), [], ("nucleus", "road"), 2) != []


@pytest.fixture
def mixture(nano, tmp_path):
    own(tmp_path / "streets", count=5)
    data = [f"{tmp_path}/streets", "scenes:objects"]
    return open_batches(nano, data, short_run(size=32, scenes=32, folder=FolderOptions(workers=0)), tmp_path / "out")


def test_every_part_of_a_mixture_is_asked_hard_negatives_and_the_mixture_itself_stays_as_it_is(mixture):
    harder = mixture.asked_by(hard_names)
    assert isinstance(harder, MixedBatches)
    plain = [mixture.batch(step, 4, 8) for step in range(12)]
    hard = [harder.batch(step, 4, 8) for step in range(12)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(plain, hard))
    anywhere = [float((~batch.present.any(0)).float().mean()) for batch in (*plain, *hard)]
    scenes = [i for i in range(12) if plain[i].drawn is not None]
    assert np.mean([anywhere[12 + i] for i in scenes]) >= 0.45 > 0.3 > np.mean([anywhere[i] for i in scenes])
    again = [mixture.batch(step, 4, 8) for step in range(12)]
    assert [batch.queries for batch in again] == [batch.queries for batch in plain]


def test_of_what_nobody_knows_nothing_is_said():
    masks = torch.zeros(2, 3, 8, 8)
    masks[0, 0, :4], masks[1, 1, 0, 0] = 1, 1  # half a picture; one pixel
    everything = torch.ones(2, 1, 8, 8)
    half = everything.clone()
    half[1, :, :4] = 0
    each = torch.ones(2, 3, 8, 8)
    each[0, 2, 7, 7] = 0

    def said(valid):
        return known_presence(Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2), [], Planes(masks, valid)))

    for valid in (None, everything):
        there, absent = said(valid)
        assert there.tolist() == [[True, False, False], [False, False, False]]
        assert absent.tolist() == [[False, True, True], [True, False, True]]
    assert said(half)[1].tolist() == [[False, True, True], [False, False, False]]
    assert said(each)[1].tolist() == [[False, True, False], [True, False, True]]


def test_a_run_ends_with_the_readout_of_a_model_that_has_one(nano_preset, raw_tokenizer, nano_folder, tmp_path):
    from digseg_engine.model.pretrained import save_checkpoint

    wide = replace(nano_preset.digseg, student=replace(nano_preset.digseg.student, presence_width=8))
    model = build_nano(replace(nano_preset, digseg=wide), raw_tokenizer)
    save_checkpoint(model, raw_tokenizer.to_str(), tmp_path / "start")
    config = short_run(size=32, scenes=32, presence=SHORT)
    made = load_checkpoint(finetune(str(tmp_path / "start"), tmp_path / "with", config, data="scenes:crops"))
    assert (tmp_path / "with" / "presence" / "log.csv").is_file()
    began = load_checkpoint(tmp_path / "start").student.read_presence.state_dict()
    assert any(not torch.equal(began[name], value) for name, value in made.student.read_presence.state_dict().items())
    finetune(str(nano_folder), tmp_path / "without", config, data="scenes:crops")
    assert not (tmp_path / "without" / "presence").exists()


def test_the_readout_alone_is_added_by_the_command_and_every_other_weight_stays(nano_folder, tmp_path):
    (tmp_path / "short.toml").write_text('extends = "finetune-100"\n[presence]\nsteps = 2\nbatch = 2\nprompts = 4\n')
    done = run_command("digseg", "train", "--init", str(nano_folder), "--presence-only", "--data", "scenes:crops", "--size", "32",
                       "--recipe", str(tmp_path / "short.toml"), "--set", "scenes=32", "--set", "quality_pictures=0", "-o", "out",
                       cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = load_checkpoint(nano_folder), load_checkpoint(tmp_path / "out" / "checkpoint")
    assert after.config.student.presence_width == 32 and before.config.student.presence_width == 0
    made = after.student.state_dict()
    assert all(torch.equal(value, made[name]) for name, value in before.student.state_dict().items())
    assert not (tmp_path / "out" / "student").exists()


def test_a_student_without_a_readout_cannot_be_taught_one(nano):
    with pytest.raises(UsageError, match=r"no presence readout.*--presence-only"):
        PresenceReader(nano.student)
