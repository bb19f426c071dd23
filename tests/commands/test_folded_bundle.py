"""The commands with a folded bundle: no prompts needed, what makes no sense refused in one line, scores of its names."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, run_command
from PIL import Image

from digseg_engine.commands.main import command_named
from digseg_engine.commands.parser import parse
from digseg_engine.vocabulary import read_vocabulary


@pytest.fixture
def photo(tmp_path, with_presence):
    Image.fromarray(with_presence.pictures[0]).save(tmp_path / "photo.png")
    return "photo.png"


@pytest.mark.parametrize("kind", ["full", "labels_only"])
def test_segment_needs_no_prompts(folded, photo, tmp_path, kind):
    done = run_command("digseg", "segment", photo, "--bundle", str(getattr(folded, kind)), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert [mask["prompt"] for mask in body["masks"]] == list(folded.names) and body["label_rule"] == "strongest"
    labels = np.asarray(Image.open(tmp_path / "out" / "photo.labels.png"))
    assert labels.max() > 0 and len(list((tmp_path / "out").glob("photo.mask.*.png"))) == len(folded.names)
    again = run_command(
        "digseg", "segment", photo, "--bundle", str(getattr(folded, kind)), "--skip-existing", cwd=tmp_path
    )
    assert "1 picture skipped" in again.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "rode"], "did you mean road?"),
        (["--against", "road"], "contrast prompts"),
        (["--all-prompts"], "all_prompts"),
        (["--refine", "1"], "refine"),
        (["--labels", "smallest"], "strongest"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(folded, photo, tmp_path, options, words):
    done = run_command("digseg", "segment", photo, "--bundle", str(folded.full), *options, cwd=tmp_path)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and words in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("road\nroad\n", [], "line 2: the name 'road' stands in line 1"),
        (None, [], "cannot be read"),
        ("road\n", ["--prompts", "3"], "--prompts, or a shape of prompts or tokens, does not apply"),
        ("road\n", ["--layout", "diffusers"], "--vocabulary does not apply"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_stops_the_export_first(tmp_path, text, options, words):
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    done = run_command("digseg-export", "--vocabulary", "names.txt", *options, cwd=tmp_path)
    (line,) = [line for line in done.stderr.strip().splitlines() if "error:" in line]
    assert done.returncode == 2 and words in line and len(list(tmp_path.iterdir())) == (text is not None)


def test_labels_only_needs_a_vocabulary(tmp_path):
    done = run_command("digseg-export", "--labels-only", cwd=tmp_path)
    assert done.returncode == 2 and "add --vocabulary FILE" in done.stderr


def test_a_dry_run_says_which_files(tmp_path):
    (tmp_path / "names.txt").write_text("road\nwater\n")
    done = run_command("digseg-export", "--vocabulary", "names.txt", "--dry-run", "--json", cwd=tmp_path)
    files = json.loads(done.stdout)["files"]
    assert {"labels.onnx", "labels.fp32.onnx", "image_encoder.onnx"} <= set(files)
    assert not {"tokenizer.json", "text_encoder.onnx", "mask_decoder.onnx"} & set(files)


def test_the_commands_of_the_page_are_what_they_say(tmp_path):
    page = (ROOT / "docs" / "export.md").read_text()
    names = next(
        body for body in re.findall(r"^```\w*\n(.*?)^```", page, re.M | re.S) if body.startswith("# names.txt")
    )
    (tmp_path / "names.txt").write_text(names)
    export, segment = (
        next(line.split("#")[0] for line in page.splitlines() if line.startswith(start))
        for start in ("digseg-export --vocabulary", "digseg segment photo.jpg --bundle")
    )
    done = run_command(*export.split(), "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == segment.split()[-1]
    assert parse(command_named("segment"), "digseg segment", segment.split()[2:])["prompt"] == []
    assert read_vocabulary(tmp_path / "names.txt").names == ("road", "building", "car")
