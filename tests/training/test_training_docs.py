"""Every command of docs/training.md runs, on models of a few thousand weights and a handful of pictures, shortened to two steps.

Commands of `benchmarks/` and of other programs are held to their options: what they measure takes minutes to hours.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command
from dataset_trees import own
from nano_models import build_nano, pico_preset
from programs import run_program

from digseg_engine.cli import main
from digseg_engine.model import config
from digseg_engine.model.pretrained import save_checkpoint
from tests.model.sd_directories import write_directory

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
PROGRAMS = ("digseg", "digseg-export", "accelerate", "tensorboard", "python")


FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def commands(page: str) -> list[str]:
    """All commands with arguments, of blocks and of sentences, each once."""
    blocks = [line for language, body in FENCE.findall(page) if not language for line in body.splitlines()]
    quoted = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", FENCE.sub("", page))]
    found = [line.split() for line in dict.fromkeys(blocks + quoted)]
    ours = [words for words in found if words and words[0] in PROGRAMS]
    return [" ".join(words) for words in ours if len(words) > (2 if words[0] == "digseg" else 1)]


COMMANDS = commands(PAGE)
OURS = [line for line in COMMANDS if line.startswith("digseg")]
BENCHMARKS = [line for line in COMMANDS if line.startswith("python ")]
OTHERS = [line for line in COMMANDS if line not in OURS + BENCHMARKS]
SHORT = {  # of the start: what makes a run one of seconds
    "digseg-tiny": ["--set", "student.batch=2"],
    "presence": ["--set", "presence.batch=2"],
    "DIRECTORY": ["--size", "128", *(f"--set={stage}.{value}" for stage in ("reference", "one_step", "student")
                                    for value in ("accumulate=1", "batch=2"))],
    "tiny": ["--set=size=32", *(f"--set={stage}.batch=2" for stage in ("autoencoder", "backbone", "text", "reference",
                                                                       "student"))],
    "distill": ["--set=few_step.batch=2", "--set=student.batch=2", "--set=report_scenes=1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory, nano_preset, raw_tokenizer):
    """What the page's commands name: models, pictures in two splits, and the recipe that it shows."""
    room = tmp_path_factory.mktemp("training")
    save_checkpoint(build_nano(pico_preset(nano_preset), raw_tokenizer), raw_tokenizer.to_str(), room / "digseg-tiny")
    write_directory(room / "DIRECTORY", raw_tokenizer)
    own(room / "mine", count=8)
    for kind in ("images", "masks"):
        for n in range(8):
            split = room / "mine" / kind / ("train" if n < 5 else "val")
            split.mkdir(exist_ok=True)
            (room / "mine" / kind / f"p{n}.png").rename(split / f"p{n}.png")
    for copy in ("nuclei", "FOLDER"):
        shutil.copytree(room / "mine", room / copy)
    (room / "cameras.toml").write_text(re.search(r"^```toml\n(.*?)^```", PAGE, re.M | re.S).group(1))
    return room


def shortened(words: list[str]) -> list[str]:
    """The same command as a run of two steps of two pictures."""
    if words[0] == "digseg-export":
        return [*words, "--dry-run"]  # exports have tests of their own
    if words[1] not in ("train", "distill") or "--list-recipes" in words:
        return words
    start = "distill" if words[1] == "distill" else words[words.index("--init") + 1] if "--init" in words else "tiny"
    start = "presence" if "--presence-only" in words else "digseg-tiny" if start.startswith("runs/") else start
    told = set(words)
    more = SHORT[start][2:] if "--size" in told and start == "DIRECTORY" else SHORT[start]
    if "tiny-denoising" in told:
        more = [word.replace("backbone", "denoiser") for word in more]
    return [*[word if word not in ("256", "384") else "64" for word in words], *more, "--scale", "0.0001"]


def made_by(words: list[str]) -> Path | None:
    """The folder of a run, None for a command that makes none."""
    if words[1] not in ("train", "distill") or "--list-recipes" in words:
        return None
    named = next((Path(words[i + 1]) for i, word in enumerate(words) if word in ("-o", "--output")), None)
    return named or Path("runs") / Path(words[words.index("--init") + 1]).name


def prepare(line: str, room: Path) -> list[str]:
    """The shortened command in a room where its output is not there yet and its inputs are."""
    words = shlex.split(line)
    if "--scale" in words:
        at = words.index("--scale")
        del words[at : at + 2]
    out = made_by(words)
    if out is not None and "--resume" not in words:
        shutil.rmtree(room / out, ignore_errors=True)
    for needed, command in (
        ("runs/mine/checkpoint", "digseg train --init digseg-tiny --data mine -o runs/mine"),
        ("runs/large/checkpoint", "digseg train --init DIRECTORY --data mine -o runs/large"),
    ):
        wanted = needed in words or ("--resume" in words and str(out) in needed)
        if wanted and not (room / needed).is_dir():
            call(shortened(prepare(command, room)))
    if "runs/words/checkpoint" in words:  # of the script before it, which has a test of its own: the start it had
        shutil.copytree(room / "digseg-tiny", room / "runs" / "words" / "checkpoint", dirs_exist_ok=True)
    return words


def export() -> None:
    from digseg_export.cli import main as run

    raise SystemExit(run())


def call(words: list[str]) -> None:
    sys.argv = words
    with pytest.raises(SystemExit) as ended:
        (main if words[0] == "digseg" else export)()
    assert ended.value.code in (0, None), words


def test_the_page_has_commands_of_every_kind():
    verbs = {line.split()[1] for line in OURS if line.startswith("digseg ")}
    assert (
        {"train", "distill", "data", "eval"} <= verbs and len(OURS) >= 20 and len(BENCHMARKS) >= 6 and len(OTHERS) == 3
    )
    assert any("--resume" in line for line in OURS) and any("--validate-every" in line for line in OURS)
    starts = {word for line in OURS for word in ("digseg-tiny", "DIRECTORY", "--config tiny") if word in line}
    assert len(starts) == 3
    found = commands("`digseg train`, `digseg\ntrain --a b`\n```\ndigseg eval --c\npip install x\n```\n`--scale 3`")
    assert found == ["digseg eval --c", "digseg train --a b"]


@pytest.mark.slow
@pytest.mark.parametrize("line", OURS)
def test_a_command_of_the_page_runs(line, room, nano_preset, monkeypatch, capsys):
    monkeypatch.chdir(room)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setitem(config.PRESETS, "tiny", pico_preset(nano_preset))
    words = prepare(line, room)
    call(shortened(words))
    out = made_by(words)
    if out is None:
        return
    checkpoint = room / out / "checkpoint"
    assert checkpoint.is_dir() == ("--dry-run" not in words)
    if checkpoint.is_dir():
        assert (checkpoint / "quality.json").is_file() == ("quality_pictures=0" not in words)
        assert (
            "quality_pictures=0" in words
            or json.loads((checkpoint / "quality.json").read_text())["measured"]["masks"] > 0
        )


@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmark_of_the_page_has_the_options_it_is_shown_with(line):
    script, *rest = shlex.split(line)[1:]
    if script == "-m":
        script, rest = f"{rest[0].replace('.', '/')}.py", rest[1:]
    asked = [word for word in rest if word.startswith("-")]
    text = (ROOT / script).read_text()
    assert all(re.search(rf'"{re.escape(word)}"', text) for word in asked), line


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in OTHERS if line.startswith("accelerate ")])
def test_several_processes_train_as_shown(room, line):
    words = shlex.split(line)
    start = words[words.index("--init") + 1]
    assert words[1] == "launch" and words[4:6] == ["-m", "digseg_engine"]
    shutil.rmtree(room / "runs" / "mine", ignore_errors=True)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision",
                "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    plain = [*launcher, *words[2:], *SHORT[start], "--scale", "0.0001"]
    done = run_command(*plain, cwd=room, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (room / "runs" / "mine" / "checkpoint" / "quality.json").is_file()
    assert done.stdout.count("quality, mean IoU of") == 1  # one process measures


@pytest.mark.slow
def test_tensorboard_reads_what_a_run_leaves(room, nano_preset, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(room)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setitem(config.PRESETS, "tiny", pico_preset(nano_preset))
    train = next(line for line in OURS if "--tensorboard" in line)
    call(shortened(prepare(train, room)))
    (line,) = [line for line in OTHERS if line.startswith("tensorboard ")]
    program = Path(sys.executable).parent / "tensorboard"
    done: subprocess.CompletedProcess[str] = run_program([program, "--inspect", *shlex.split(line)[1:]], cwd=room)
    assert done.returncode == 0 and "scalars" in done.stdout
