"""Several data sets in one training: weights hold, every set gives its own batches, and none speaks of another's classes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_command
from dataset_trees import TREES, own
from small_stage import short_run

from digseg_engine.data.batches import FolderOptions
from digseg_engine.data.mixtures import BLOCK, MixedBatches
from digseg_engine.data.shares import Share, parse_shares, short_names
from digseg_engine.errors import UsageError
from digseg_engine.model.quality import read_quality
from digseg_engine.training.recipes.finetune import finetune, open_batches


@pytest.fixture
def folders(tmp_path):
    own(tmp_path / "streets", count=5)
    own(
        tmp_path / "fields",
        classes=[{"name": "weed", "id": 0}, {"name": "car", "id": 7}],
        count=4,
        ignore=9,
        ignore_colour=[],
        absent=["road"],
    )
    TREES["kvasir"](tmp_path / "polyps")
    return tmp_path


def config_of(**options):
    return short_run(size=32, scenes=32, folder=FolderOptions(**options))


def mixed(nano, folders, **options):
    data = [f"{folders}/streets", f"{folders}/fields=0.5", f"{folders}/polyps=0.25", "scenes:crops=0.25"]
    alone = [open_batches(nano, share.data, config_of(**options), folders / "out") for share in parse_shares(data)]
    return open_batches(nano, data, config_of(**options), folders / "out"), alone


def same(a, b):
    valid = (a.valid is None) == (b.valid is None) and (a.valid is None or torch.equal(a.valid, b.valid))
    return a.queries == b.queries and valid and torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2}, {"workers": 2, "echo": 2}])
def test_every_set_gives_the_batches_that_it_gives_alone_in_order(nano, folders, options):
    mixture, alone = mixed(nano, folders, **options)
    seen = [0, 0, 0, 0]
    for step in range(60):
        number, own_step = mixture.place(step)
        assert own_step == seen[number]
        seen[number] += 1
        assert same(mixture.batch(step, 2, 3), alone[number].batch(own_step, 2, 3)), step
    assert min(seen) > 0
    again, _ = mixed(nano, folders, **options)
    for steps in (range(37, 44), range(1, 30, 4)):  # a resumed run, and one of four processes
        for step in steps:
            number, own_step = mixture.place(step)
            assert same(again.batch(step, 2, 3), alone[number].batch(own_step, 2, 3)), step


def test_weights_hold_and_far_steps_are_counted_right():
    class Named:
        names = ("a",)

    mixture = MixedBatches([Named(), Named(), Named()], [1, 0.5, 0.25], 3)
    places = [mixture.place(step) for step in range(4 * BLOCK)]
    shares = np.bincount([number for number, _ in places]) / len(places)
    assert np.abs(shares - np.array([4, 2, 1]) / 7).max() < 0.03  # four standard deviations
    fresh = MixedBatches([Named(), Named(), Named()], [1, 0.5, 0.25], 3)
    assert [fresh.place(step) for step in (3 * BLOCK + 5, BLOCK, 7)] == [places[s] for s in (3 * BLOCK + 5, BLOCK, 7)]
    for number in range(3):
        own_steps = [own for n, own in places if n == number]
        assert own_steps == list(range(len(own_steps)))


def test_a_set_says_nothing_of_a_class_it_does_not_label(nano, folders):
    """`weed` and `polyp` are unknown to the streets, `polyp` to the fields, which declare `road` absent."""
    mixture, alone = mixed(nano, folders)
    known = [{"road", "car"}, {"weed", "car", "road"}, set(alone[2].names), set(alone[3].names)]
    asked = [set(), set(), set(), set()]
    for step in range(120):
        batch, (number, _) = mixture.batch(step, 2, 6), mixture.place(step)
        names = [query.name for query in batch.queries]
        asked[number] |= set(names)
        assert set(names) <= known[number], (step, number)
        if number == 1 and "road" in names:
            assert not batch.masks[:, names.index("road")].any() and not batch.present[:, names.index("road")].any()
    assert asked[0] == known[0] and asked[1] == known[1] and "polyp" in asked[2]
    assert {"road", "weed", "polyp", "crop row"} <= set(mixture.names)
    rng = np.random.default_rng(0)
    assert {mixture.phrase(rng, "road").name, mixture.phrase(rng, "polyp").name} == {"road", "polyp"}


def test_shares_are_read_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=2").mkdir()
    assert parse_shares("data") == (Share("data"),) and parse_shares("scenes:a,b=0.25") == (Share("scenes:a,b", 0.25),)
    assert parse_shares("a=2") == (Share("a=2"),) and parse_shares(["a=2=3"]) == (Share("a=2", 3.0),)
    for text in ("data=x", "data=0", "data=-1", "data=nan", "data=inf", "data="):
        with pytest.raises(UsageError, match=r"the weight after = must be a number above 0"):
            parse_shares([text])
    with pytest.raises(UsageError, match="--data b is given twice"):
        parse_shares(["b=2", "b"])


def test_parts_are_called_by_the_ends_of_their_paths_where_those_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_names(parse_shares(["a/streets", "fields/", "scenes:crops"])) == ["streets", "fields", "scenes:crops"]
    assert short_names(parse_shares(["a/set", "b/set=2", "c"])) == ["a/set", "b/set", "c"]
    assert short_names(parse_shares(".")) == [tmp_path.name]


def test_a_mixture_trains_and_is_recorded(nano, nano_folder, folders, capsys):
    from test_folder_training import SHORT, changed

    from digseg_engine.model.pretrained import load_checkpoint
    from digseg_export.own_pictures import trained_on

    data = [f"{folders}/streets=0.5", f"{folders}/fields"]
    settings = short_run(size=32, student=replace(SHORT, steps=4, batch=50, validate_every=4), quality_pictures=4)
    written = finetune(str(nano_folder), folders / "run", settings, data=data)
    said = capsys.readouterr().out
    sets = read_quality(written).measured["sets"]
    names = ["streets all", "fields all"]
    assert list(sets) == names and sum(own["masks"] for own in sets.values()) == read_quality(written).measured["masks"]
    total = sum(own["student"] * own["masks"] for own in sets.values())
    assert total / read_quality(written).measured["masks"] == pytest.approx(read_quality(written).student, abs=1e-3)
    assert "  student by set: streets all 0." in said and all(f"\n  {name}: 0." in said for name in names)
    assert "validation mean IoU" in said and "(streets all 0." in said
    assert changed(nano.student, load_checkpoint(written).student)
    assert json.loads((folders / "run" / "train.json").read_text())["data"] == data
    assert trained_on(written) == (folders / "streets", folders / "fields")
    finetune(str(nano_folder), folders / "run", settings, data=data, resume=True)
    with pytest.raises(UsageError, match=r"cannot resume .* with other settings: data: "):
        finetune(str(nano_folder), folders / "run", settings, data=data[:1], resume=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "streets", "--data", "nowhere=2"], "--data nowhere is neither scenes nor a folder"),
        (
            ["--data", "streets", "--data", "fields=much"],
            "--data fields=much: the weight after = must be a number above 0",
        ),
        (["--data", "streets", "--data", "fields", "--layout", "folder"], "--layout folder describes one folder"),
    ],
)
def test_refused_mixtures(folders, arguments, words):
    done = run_command("digseg", "train", "--init", "digseg-tiny", *arguments, cwd=folders)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
