"""Recipes: the one place of a run's values. What the files say, what they become, what is refused, and that a run repeats."""

import json
import re
import shlex
import sys
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command
from programs import run_program
from small_stage import SHORT, short_run

from digseg_engine.cli import main
from digseg_engine.commands.train import refuse_idle
from digseg_engine.data.batches import FolderOptions
from digseg_engine.errors import UsageError
from digseg_engine.model.pretrained import BUNDLED
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.denoising import DenoisingLoss
from digseg_engine.training.objectives.noise import generator
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.recipe_files import (
    RECIPES,
    as_toml,
    bundled_recipes,
    default_recipe,
    distill_recipe,
    former_name,
    read_recipe,
    recipe_settings,
    settings_of,
)
from digseg_engine.training.recipes.distill import DistillConfig
from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
from digseg_engine.training.recipes.tiny import TrainConfig
from digseg_engine.training.run import stages_of, with_settings
from digseg_engine.worlds.pool import SceneBatches, build_pool
from digseg_engine.worlds.sources import cache_latents
from tests.model.sd_directories import write_directory

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"nothing": TrainConfig, "pretrained": FinetuneConfig, "reference": DistillConfig}
NEUTRAL = {  # what may stand in Python: it is off, everything, or changes no weight
    "prompts": 1, "warmup": 0, "weight_decay": 0.0, "clip": float("inf"), "ema": 0.0, "accumulate": 1, "precision": "auto",
    "gradient_checkpointing": False, "average_on_cpu": False, "lora": 0, "channels_last": False, "tf32": True, "save_every": 500,
    "shard": False,
    "save_minutes": 15.0, "stop": None, "compile": False, "optimizer": "adamw", "tensorboard": False,
    "wandb": False, "validate_every": 0, "validate_pictures": 20, "early_stop": 0,
}  # fmt: skip
OF_EVERY_RUN = {"recipe": "", "seed": 0, "quality_pictures": 0, "size": None, "imitate_every": 0, "noise": "gaussian",
                "late": 0.5, "prompt_dropout": 0.0, "dense": False, "presence_beside": False, "folder": FolderOptions(),
                "reference": None, "denoiser": None, "backbone": None,
                "one_step": None, "student": None, "presence": None}  # fmt: skip
SAID = (
    "steps",
    "batch",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip",
    "ema",
    "optimizer",
)  # of every stage, by a recipe


def write(folder, text, name="mine.toml"):
    (folder / name).write_text(text)
    return str(folder / name)


def defaults(kind):
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def test_no_value_of_a_recipe_stands_in_python():
    assert defaults(StageConfig) == NEUTRAL
    for kind in KINDS.values():
        found = defaults(kind)
        assert found == {name: OF_EVERY_RUN[name] for name in found}, kind


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_says_every_value_of_its_stages(name):
    recipe = read_recipe(name)
    settings = settings_of(recipe, KINDS[recipe.start])
    assert settings.recipe == name and recipe.about
    for stage in stages_of(settings):
        assert not set(SAID) - set(recipe.values[stage]), stage
    text = (RECIPES / f"{name}.toml").read_text()
    reasoned = (
        "late|prompt_dropout|imitate_every|quality_pictures|optimizer|warmup|weight_decay|clip|ema|precision|echo"
    )
    for line in text.splitlines():  # a value without a reason is a number that nobody dares to change
        if re.match(rf"({reasoned})\b", line):
            assert "#" in line, line


def recorded(number):
    """The settings of one of the bundled model's runs: 0 is the last, -1 the first."""
    folders = sorted(
        (path.parent for path in (BUNDLED / "training").rglob("train.json")), key=lambda folder: len(folder.parts)
    )
    return json.loads((folders[number] / "train.json").read_text())


def test_the_tiny_recipe_has_the_values_of_the_bundled_models_first_run():
    """Of the record: all stages but the student, which was given more pictures and fewer prompts later."""
    now = asdict(recipe_settings("tiny", TrainConfig))
    then = recorded(-1)
    without_effect = {"prompts", "precision"}  # of stages that ask no prompts; `auto` is `no` on that machine
    for stage in ("autoencoder", "backbone", "text", "reference"):
        told = {key: value for key, value in then[stage].items() if key not in without_effect}
        assert {key: now[stage][key] for key in told} == told, stage
    assert (now["text"]["prompts"], now["seed"], now["scenes"], now["size"]) == (32, 0, 4000, 128)
    assert (now["dense"], now["imitate_every"], now["prompt_dropout"]) == (True, 16, 0.0)
    student = {"steps": 4200, "batch": 16, "learning_rate": 4e-3, "prompts": 8, "warmup": 50, "weight_decay": 0.01, "clip": 1.0,
               "ema": 0.995, "optimizer": "muon", "compile": True}  # fmt: skip
    assert {key: now["student"][key] for key in student} == student
    assert [name for name, stage in stages_of(recipe_settings("tiny", TrainConfig)).items() if stage.compile] == [
        "backbone", "reference", "student"
    ]  # fmt: skip


def test_the_command_of_the_bundled_models_second_run_still_has_the_settings_of_its_record():
    page = (BUNDLED / "README.md").read_text().replace("\\\n", " ")
    words = shlex.split(next(line for line in page.splitlines() if "--detail-blocks" in line))
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    recipe = recipe_settings(default_recipe(BUNDLED, student_only="--student-only" in words), FinetuneConfig)
    now = asdict(with_settings(recipe, changes))
    then = recorded(-2)
    told = {key: value for key, value in then["student"].items() if key != "save_every"}
    assert {key: now["student"][key] for key in told} == told
    assert all(now[key] == then[key] for key in ("seed", "scenes", "size", "dense")) and now["imitate_every"] == 16


def test_finetune_100_is_what_quick_was():
    quick = recipe_settings("finetune-100", FinetuneConfig)
    assert quick.student.validate_every == 50  # the one value that `quick` had not
    assert replace(quick.student, validate_every=0) == StageConfig(200, 8, 2e-3, prompts=8, warmup=20,
                                                                  weight_decay=0.01, clip=1.0, ema=0.98,
                                        optimizer="muon")  # fmt: skip
    assert quick.student_alone and quick.imitate_every == 0 and quick.folder == FolderOptions()


@pytest.mark.parametrize("name", ["finetune-all", "sd15", "sd21-ade20k"])
def test_recipes_of_large_networks_move_them_little(name):
    c = recipe_settings(name, FinetuneConfig)
    assert {stage.optimizer for stage in stages_of(c).values()} == {"adamw"}
    assert c.reference.learning_rate == c.one_step.learning_rate == 3e-5 and c.student.learning_rate == 1e-4
    pictures = {key: stage.batch * stage.accumulate for key, stage in stages_of(c).items()}
    assert pictures == {"reference": 32, "one_step": 32, "student": 16, "presence": 16}
    assert all(stage.warmup == 100 for stage in stages_of(c).values()) and c.folder.echo == 4
    sd = name.startswith("sd")
    assert c.prompt_dropout == (0.1 if sd else 0.0) and c.imitate_every == 16 and c.late == (1.0 if sd else 0.5)
    assert {stage.precision for stage in stages_of(c).values()} == {"bf16" if sd else "auto"}
    assert c.student.gradient_checkpointing == (name == "sd21-ade20k")


def test_the_recipe_follows_the_start(tmp_path, raw_tokenizer, nano_folder):
    old = write_directory(tmp_path / "sd1", raw_tokenizer, style="1.5")
    new = tmp_path / "sd2" / "text_encoder"
    new.mkdir(parents=True)
    (new / "config.json").write_text('{"hidden_size": 1024}')
    found = [default_recipe(start) for start in (None, nano_folder, old, new.parent)]
    assert found == ["tiny", "finetune-100", "sd15", "sd21-ade20k"]
    assert default_recipe(nano_folder, student_only=True) == "finetune-all"
    assert (former_name("quick", None), former_name("full", nano_folder)) == ("finetune-100", "finetune-all")
    assert (former_name("full", old), former_name("sd15", old)) == ("sd15", None)
    assert (distill_recipe(nano_folder), distill_recipe(new.parent)) == ("distill-tiny", "distill-sd")


@pytest.mark.parametrize("name", bundled_recipes())
def test_resolved_values_give_the_same_settings_again(tmp_path, name):
    kind = KINDS[read_recipe(name).start]
    settings = replace(recipe_settings(name, kind), seed=3, recipe='a "name"\n')
    if kind is FinetuneConfig:
        folder = FolderOptions(layout="voc2012", augment=("colour", "blur"), balance=0.25)
        settings = replace(settings, size=96, folder=folder, one_step=None)
    text = as_toml(settings)
    assert recipe_settings(write(tmp_path, text, "recipe.toml"), kind) == settings


def test_a_file_extends_another_and_its_own_stages_hold_for_what_it_takes_over(tmp_path):
    write(tmp_path, 'extends = "finetune-all"\nscenes = 7\n[stages]\nwarmup = 5\n[student]\nsteps = 9\n', "base.toml")
    path = write(
        tmp_path, 'extends = "base.toml"\n[stages]\nclip = 2\n[student]\nwarmup = 6\n[folder]\nbalance = 0.1\n'
    )
    got, base = recipe_settings(path, FinetuneConfig), recipe_settings("finetune-all", FinetuneConfig)
    assert got.recipe == "mine" and got.scenes == 7
    assert got.reference == replace(base.reference, warmup=5, clip=2.0)
    assert got.student == replace(base.student, warmup=6, clip=2.0, steps=9) and isinstance(got.student.clip, float)
    assert got.folder == replace(base.folder, balance=0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[student]\nstep = 5\n", r"recipe mine: there is no setting student\.step; did you mean steps\?; expected student\.s"),
        ("[studnet]\nsteps = 5\n", r"no setting studnet; did you mean student\?"),
        ("[stages]\nrate = 1.0\n", r"no setting reference\.rate"),
        ("scnes = 5\n", r"no setting scnes; did you mean scenes\?"),
        ('[student]\nsteps = "many"\n', r"student\.steps must be a whole number, got 'many'"),
        ("[student]\nsteps = 5.5\n", r"student\.steps must be a whole number, got 5\.5"),
        ("[student]\nsteps = true\n", r"student\.steps must be a whole number, got True"),
        ("[student]\nlearning_rate = false\n", r"student\.learning_rate must be a number, got False"),
        ("[student]\ncompile = 1\n", r"student\.compile must be true or false, got 1"),
        ("student = 5\n", r"student must be a table of settings, got 5"),
        ("stages = 5\n", r"no setting stages"),
        ('noise = "pink"\n', r"noise must be 'gaussian' or 'multi-resolution', got 'pink'"),
        ("[folder]\naugment = 'blur'\n", r"folder\.augment must be a list, got 'blur'"),
        ("[folder]\naugment = [1]\n", r"folder\.augment must be text, got 1"),
        ("prompt_dropout = 1.5\n", r"prompt_dropout must be a share of the prompts from 0 to 1, got 1\.5"),
        ("late = 0\n", r"late must be a positive power .*, got 0"),
        ("late = inf\n", r"late must be a positive power .*, got inf"),
        ("steps = \n", r"mine\.toml cannot be read: .*expected TOML"),
        ("about = 5\n", r"about must be text, got 5"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_say_is_one_line(tmp_path, text, words):
    path = write(tmp_path, f'extends = "finetune-all"\n{text}')
    with pytest.raises(UsageError, match=words) as caught:
        recipe_settings(path, FinetuneConfig)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"no recipe 'finetune'; did you mean finetune-\w+\?; expected one of .*tiny, tiny-denoising, or a TOML",
    ):
        read_recipe("finetune")
    with pytest.raises(UsageError, match="extends itself"):
        read_recipe(write(tmp_path, 'extends = "mine.toml"\n'))
    with pytest.raises(UsageError, match=r"start must be nothing or pretrained or reference, got ''"):
        read_recipe(write(tmp_path, "scenes = 5\n"))
    with pytest.raises(UsageError, match=r"neither a \[student\] nor a \[presence\] stage"):
        recipe_settings(write(tmp_path, 'start = "pretrained"\nscenes = 5\n'), FinetuneConfig)
    with pytest.raises(UsageError, match=r"student\.batch lacks"):
        recipe_settings(
            write(tmp_path, 'start = "pretrained"\nscenes = 5\n[student]\nsteps = 1\nlearning_rate = 1\n'),
            FinetuneConfig,
        )
    with pytest.raises(UsageError, match="recipe tiny trains from nothing; use it without --init"):
        recipe_settings("tiny", FinetuneConfig)


def test_a_change_of_a_stage_that_is_left_out_is_refused():
    refuse_idle(["student.steps=3"], short_run())
    refuse_idle(["reference.steps=3"], short_run(reference=SHORT))
    with pytest.raises(UsageError, match="leaves out"):
        refuse_idle(["reference.steps=3"], short_run(one_step=SHORT))


def test_recipes_are_listed_and_wrong_ones_refused_without_torch(tmp_path):
    code = "import sys, digseg_engine.training.recipe_files as r; r.read_recipe('sd15'); print('torch' in sys.modules)"
    assert run_program([sys.executable, "-c", code], cwd=ROOT).stdout.strip() == "False"
    done = run_command("digseg", "train", "--list-recipes", cwd=tmp_path)
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == [name for name in bundled_recipes() if read_recipe(name).start != "reference"]
    for words, said in (
        ("--recipe sd15", "recipe sd15 trains from pretrained weights; use it with --init MODEL"),
        ("--recipe tiny --init digseg-tiny --data scenes", "use it without --init"),
        ("--recipe distill-sd --init digseg-tiny --data scenes", "use it with digseg distill"),
        ("--recipe finetune-10 --init digseg-tiny --data scenes", "did you mean finetune-100?"),
    ):
        done = run_command("digseg", "train", *words.split(), cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def weights(run):
    return (run / "checkpoint" / "student" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_stores_its_recipe_which_gives_the_same_run(tmp_path, nano_folder, monkeypatch, capsys):
    own = write(tmp_path, 'extends = "finetune-all"\nscenes = 4\nprompt_dropout = 0.5\n[stages]\nsteps = 3\nbatch = 2\n'
                          "accumulate = 1\nwarmup = 1\n[student]\nprompts = 3\n")  # fmt: skip
    common = ["digseg", "train", "--init", str(nano_folder), "--data", "scenes:crops"]

    def train(*words):
        monkeypatch.setattr("sys.argv", [*common, *words])
        with pytest.raises(SystemExit, match="0"):
            main()
        return capsys.readouterr().out

    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    said = train("--recipe", own, "--size", "64", "--seed", "3", "--scale", "0.7", "--set", "student.learning_rate=0.01", "-o",
                 str(first))  # fmt: skip
    assert "recipe mine" in said and "prompt_dropout=0.5" in said and "adamw at 0.01 after 1 step of warm-up" in said
    stored = first / "recipe.toml"
    assert (first / "checkpoint" / "training" / "recipe.toml").read_bytes() == stored.read_bytes()
    train("--recipe", str(stored), "-o", str(second))
    assert weights(second) == weights(first) and (second / "recipe.toml").read_bytes() == stored.read_bytes()
    records = [json.loads((run / "train.json").read_text()) for run in (first, second)]
    assert records[0] == records[1] and records[0]["recipe"] == "mine" and records[0]["student"]["steps"] == 2
    train("--recipe", str(stored), "--set", "student.learning_rate=0.02", "-o", str(third))
    assert weights(third) != weights(first)


@pytest.fixture
def source(nano, tmp_path):
    """Makes a `PairSource` of six scenes with this share of dropped prompts."""
    pools = {"crops": build_pool("crops", 6, 64, tmp_path, workers=1)}
    cache_latents(nano.vae, pools, tmp_path)

    def make(dropout, seed=0):
        batches = SceneBatches(pools, {"crops": 1.0}, seed=seed)
        return PairSource(batches, nano.vae, nano.text_encoder, nano.tokenizer, replace(SHORT, batch=6), dropout)

    return make


def dropped(pairs):
    return (pairs.trunk_mask.sum(1) != pairs.token_mask.sum(1)).tolist()


def test_dropped_prompts_are_a_pure_function_of_seed_and_step(source):
    def draw(seed, step, dropout=0.5):
        return source(dropout, seed).draw(step, generator(seed, step), torch.device("cpu"))

    assert dropped(draw(0, 1)) == dropped(draw(0, 1))
    assert torch.equal(draw(0, 1).trunk, draw(0, 1).trunk)
    assert len({tuple(dropped(draw(seed, step))) for seed in (0, 1) for step in range(4)}) > 4
    share = np.mean([dropped(draw(0, step, 0.25)) for step in range(60)])
    assert 0.18 < share < 0.32
    plain, half = draw(0, 1, 0.0), draw(0, 1)
    assert plain.trunk is None and torch.equal(plain.clean, half.clean)  # the same pictures and prompts are drawn


@pytest.mark.parametrize("make_loss", [DenoisingLoss, OneStepLoss])
def test_the_trunk_is_asked_the_empty_prompt_and_the_pathway_is_told_the_prompt(nano, source, make_loss, monkeypatch):
    seen = []

    class Listening(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, latents, t, text, mask, trunk=None, trunk_mask=None):
            seen.append((text, mask, trunk, trunk_mask))
            return self.scale * latents[:, :4]

    make_loss(source(1.0), nano.schedule)(Listening(), 0)
    make_loss(source(0.0), nano.schedule)(Listening(), 0)
    (text, mask, trunk, trunk_mask), (plain, plain_mask, *nothing) = seen
    assert nothing == [None, None] and torch.equal(plain, text) and torch.equal(plain_mask, mask)
    empty = nano.text_encoder(torch.tensor([nano.tokenizer.ids("")])).last_hidden_state[0]
    for row, live in zip(trunk, trunk_mask):
        assert int(live.sum()) == len(empty) == 2 and torch.allclose(row[live], empty, atol=1e-6)
    assert bool((mask.sum(1) > 2).all())


def test_the_reference_keeps_trunk_and_pathway_apart(nano):
    random = torch.Generator().manual_seed(0)
    latents, t = torch.randn(1, 8, 8, 8, generator=random), torch.tensor([5])
    width = nano.reference.unet.config.cross_attention_dim
    text, other = (torch.randn(1, 3, width, generator=random) for _ in range(2))
    mask = torch.ones(1, 3, dtype=torch.bool)

    def answer(*words):
        with torch.no_grad():
            return nano.reference(latents, t, *words)

    assert torch.equal(answer(text, mask, text, mask), answer(text, mask))
    for injection in nano.reference.pathway.injections:
        torch.nn.init.zeros_(injection.gate)  # the pathway is silent: what is left is the trunk
    assert torch.equal(answer(text, mask, other, mask), answer(other, mask))
    assert not torch.equal(answer(text, mask), answer(other, mask))
    torch.nn.init.constant_(nano.reference.pathway.injections[0].gate, 0.5)
    assert not torch.equal(answer(text, mask, other, mask), answer(other, mask))


def test_prompt_dropout_reaches_both_stages_of_the_reference(nano_folder, tmp_path, monkeypatch):
    from digseg_engine.training.recipes import finetune as module

    shares = []

    class Noting(PairSource):
        def __init__(self, *parts):
            super().__init__(*parts)
            shares.append(self.dropout)

    monkeypatch.setattr(module, "PairSource", Noting)
    settings = short_run(size=64, prompt_dropout=0.25, imitate_every=0, reference=SHORT, one_step=SHORT)
    finetune(str(nano_folder), tmp_path / "run", settings, data="scenes:crops")
    assert shares == [0.25, 0.25]


COLUMNS = ("steps", "pictures", "prompts", "optimizer", "rate", "warm-up", "average", "precision")


def rows():
    """The table of docs/training.md, from the files."""
    for name in bundled_recipes():
        for stage, c in stages_of(recipe_settings(name, KINDS[read_recipe(name).start])).items():
            pictures = f"{c.batch * c.accumulate}" + (f" ({c.batch} x {c.accumulate})" if c.accumulate > 1 else "")
            prompts = str(c.prompts) if c.prompts > 1 else ""
            values = (
                c.steps,
                pictures,
                prompts,
                c.optimizer,
                f"{c.learning_rate:g}",
                c.warmup,
                f"{c.ema:g}",
                c.precision,
            )
            yield f"| `{name}` | {stage} | " + " | ".join(map(str, values)) + " |"


def test_the_page_shows_the_values_of_the_files():
    page = (ROOT / "docs" / "training.md").read_text()
    head = f"| recipe | stage | {' | '.join(COLUMNS)} |\n{'| --- ' * (len(COLUMNS) + 2)}|\n"
    table = head + "\n".join(rows()) + "\n"
    assert table in page, f"docs/training.md, Recipes, should hold:\n{table}"
