"""Folders, prompts and results of `digseg segment`: what is taken, what is left alone, what is said, what survives a fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image

from digseg_engine.errors import InputError
from digseg_engine.runtime.inputs import find_pictures, read_prompts
from digseg_engine.worlds.scenes import scene

LABELME = '{"version": "5.5", "shapes": [{"label": "road"}], "imagePath": "a.png"}'


@pytest.fixture
def room(tmp_path):
    """in/: a.png, b.png, hidden and foreign files, and deeper/c.png."""
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "deeper/c.png")):
        Image.fromarray(scene(number, "aerial", 96, "demo").image).save(folder / name)
    (folder / "._a.png").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (folder / "IMG_1.MOV").write_bytes(b"\0" * 40)
    (folder / ".thumbs").mkdir()
    shutil.copy(folder / "a.png", folder / ".thumbs" / "t.png")
    return tmp_path


def segment(room, bundle, *words, **more):
    return run_command("digseg", "segment", *words, "-b", str(bundle), cwd=room, **more)


def test_a_folder_gives_its_pictures_and_says_what_it_left_out(room):
    found = find_pictures([str(room / "in")])
    assert [path.name for path in found.paths] == ["a.png", "b.png"]
    assert found.notes == [
        "left out 1 hidden, 1 .MOV",
        "folders inside (1) were not looked into; --recursive does that",
    ]
    deep = find_pictures([str(room / "in")], recursive=True)
    assert [path.name for path in deep.paths] == ["a.png", "b.png", "c.png"]
    assert find_pictures([str(room / "in" / "._a.png")]).paths  # named: taken, and judged when read
    shutil.rmtree(room / "in" / "deeper")
    for name in ("a.png", "b.png"):
        (room / "in" / name).unlink()
    with pytest.raises(InputError, match=r"holds no picture, 1 hidden, 1 \.MOV; expected files ending in"):
        find_pictures([str(room / "in")])


def test_results_are_never_pictures_and_foreign_files_are_not_replaced(room, bundle):
    for _ in range(2):
        done = segment(room, bundle, "in", "-p", "road", "-o", "in")
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (room / "in").iterdir() if path.is_file() and not path.name.startswith("."))
    made = [f"{stem}.{kind}" for stem in "ab" for kind in ("json", "labels.png", "mask.road.png", "overlay.png")]
    assert names == sorted(["IMG_1.MOV", "a.png", "b.png", *made])
    assert "8 results of this program" in done.stderr
    (room / "in" / "a.json").write_text(LABELME)
    for kind in ("overlay.png", "mask.road.png", "labels.png"):
        (room / "in" / f"a.{kind}").unlink()
    done = segment(room, bundle, "in", "-p", "road", "-o", "in")
    assert done.returncode == 1 and "a.json is there and was not written by this program" in done.stderr
    assert (room / "in" / "a.json").read_text() == LABELME and "b.png: " in done.stdout


def test_results_that_are_there_are_skipped_for_the_same_prompts_only(room, bundle):
    assert segment(room, bundle, "in/a.png", "-p", "road", "-o", "out").returncode == 0
    before = (room / "out" / "a.json").stat().st_mtime_ns
    done = segment(room, bundle, "in", "-p", "road", "-o", "out", "--skip-existing")
    assert done.returncode == 0 and "1 picture skipped" in done.stderr
    assert (room / "out" / "a.json").stat().st_mtime_ns == before and (room / "out" / "b.json").is_file()
    done = segment(room, bundle, "in", "-p", "water", "-o", "out", "--skip-existing")
    assert "skipped" not in done.stderr and (room / "out" / "a.json").stat().st_mtime_ns > before


def test_one_picture_that_fails_in_any_way_loses_no_other(room, bundle):
    """Two inputs and one output at fault: each is named, the rest is done, no traceback."""
    (room / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 60)
    (room / "out" / "a.overlay.png").mkdir(parents=True)  # a folder where a file goes
    shutil.copy(room / "in" / "b.png", room / "in" / f"{'n' * 245}.png")
    done = segment(room, bundle, "in", "-p", "road", "-o", "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 3 and "a.overlay.png" in errors[0] and "broken.png" in errors[1] and "2 of 4" in errors[2]
    assert (room / "out" / "b.json").is_file() and len(list((room / "out").glob("nnn*.json"))) == 1


def test_text_that_the_console_cannot_show_ends_nothing(room, bundle):
    done = segment(room, bundle, "in", "-p", "field", "-p", "road 道", "-o", "out", env={"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    assert r"road \u9053" in done.stdout and len(list((room / "out").glob("*.json"))) == 2
    done = segment(room, bundle, "in", "-p", "ro\udcffad", "-o", "other")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("is not valid text; expected UTF-8")


def test_prompts_from_a_file(room, bundle, tmp_path):
    (room / "classes.txt").write_text("\ufeffroad\n\n# not this\n  water  \n", encoding="utf-8")
    assert read_prompts(["tree"], room / "classes.txt") == ["tree", "road", "water"]
    done = segment(room, bundle, "in/a.png", "--prompts-file", "classes.txt", "--only", "masks", "-o", "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (room / "out").iterdir()) == ["a.mask.road.png", "a.mask.water.png"]
    (room / "latin.txt").write_bytes("straße".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt cannot be read: it is not UTF-8 text"):
        read_prompts([], room / "latin.txt")


def test_json_lines_quiet_and_verbose(room, bundle):
    done = segment(room, bundle, "in/a.png", "in/b.png", "-p", "road", "--json", "-o", "out")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["picture"]).name for line in lines] == ["a.png", "b.png"]
    for line in lines:
        assert len(line["saved"]) == 4 and all((room / name).is_file() for name in line["saved"])
    done = segment(room, bundle, "in", "-p", "road", "--quiet", "-o", "out")
    assert (done.stdout, done.stderr) == ("", "")
    done = segment(room, bundle, "in/a.png", "-p", "road", "--verbose", "-o", "out")
    assert f"bundle {bundle} (named by --bundle)" in done.stderr and "backend onnxruntime" in done.stderr


@pytest.mark.parametrize("how", [[], ["--only", "masks,labels"], ["--tile", "48"]])
def test_json_lines_name_the_files_that_were_written(room, bundle, how):
    done = segment(room, bundle, "in/a.png", "-p", "road", "-p", "a/b", "-p", "A/B", "--json", "-o", "out", *how)
    (line,) = map(json.loads, done.stdout.splitlines())
    masks = [mask["file"] for mask in line["masks"] if "file" in mask]
    assert masks == ([] if "--tile" in how else [f"a.mask.{name}.png" for name in ("road", "a-b", "a-b-2")])
    named = {*masks, *line["files"].values()}
    assert named | {"a.json"} == {Path(path).name for path in line["saved"]} | {"a.json"} and len(named) >= 2
    assert all((room / "out" / name).is_file() for name in named)


def test_refining_with_a_bundle_alone_says_what_to_do(room, bundle):
    done = segment(room, bundle, "in/a.png", "in/b.png", "-p", "road", "--refine", "1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "for the bundled model leave --refine out: its reference makes masks worse" in done.stderr
    shutil.copytree(bundle, room / "mine-fp16")
    done = segment(room, "mine-fp16", "in/a.png", "-p", "road", "--refine", "1")
    assert "the checkpoint that mine-fp16 was exported from; add --checkpoint FOLDER" in done.stderr


def test_words_that_are_meant_as_prompts_are_told_so(room, bundle):
    done = segment(room, bundle, "in/a.png", "-p", "coin", "cat", "-o", "out")
    assert done.returncode == 2 and "repeat -p for it: -p cat" in done.stderr
    done = segment(room, bundle, "in/a.png", "-p", "coin,cat", "-o", "out")
    assert done.returncode == 0 and "'coin,cat' is asked as one prompt; for several, repeat -p" in done.stderr


def test_what_is_not_found_is_said_with_what_is(room, bundle):
    done = segment(room, bundle, "in/a.png", "-p", "road", "-p", "field", "-p", "xyzzy", "-o", "out")
    line = done.stdout.strip()
    assert line.count("not there: ") == 1 and "xyzzy" in line.split("not there: ")[1] and "%" in line.split("; not")[0]
    done = segment(room, bundle, "in/a.png", "-p", "xyzzy", "-o", "out")
    assert "nothing found" in done.stdout and "not found:" not in done.stdout


def test_a_picture_far_larger_than_the_working_size_gets_a_hint(room, bundle):
    Image.fromarray(scene(0, "aerial", 1200, "demo").image).save(room / "large.png")
    done = segment(room, bundle, "large.png", "-p", "road")
    hint = "worked at 384 px, the picture has 1200; try a larger size"
    assert f"digseg: {hint}" in done.stderr and hint not in done.stdout
    assert hint in json.loads((room / "out" / "large.json").read_text())["notes"][0]
    assert "larger size" not in segment(room, bundle, "large.png", "-p", "road", "--imgsz", "512").stderr
    for copy in "xy":
        shutil.copy(room / "large.png", room / "in" / f"{copy}.png")
    done = segment(room, bundle, "in", "-p", "road")
    assert done.stderr.count("larger size") == 1 and f"2 of 4 pictures: {hint}" in done.stderr


def test_bare_digseg_and_help_are_no_errors(room):
    for words in ([], ["help"], ["-h"], ["--help"], ["help", "segment"], ["segment", "-h"]):
        done = run_command("digseg", *words, cwd=room)
        assert done.returncode == 0 and "usage: digseg" in done.stdout and not done.stderr
    for word, meant in {
        "export": "use digseg-export",
        "version": "use digseg --version",
        "predict": "digseg segment",
    }.items():
        done = run_command("digseg", word, cwd=room)
        assert done.returncode == 2 and meant in done.stderr and len(done.stderr.splitlines()) == 1
    done = run_command("digseg", "segmnt", cwd=room)
    assert done.returncode == 2 and "did you mean segment?" in done.stderr


def test_a_result_without_a_wanted_file_or_with_other_rules_is_not_skipped(room, bundle):
    first = segment(room, bundle, "in", "-p", "road", "-o", "few", "--only", "json")
    assert first.returncode == 0
    for more in (["--only", "json,masks"], [], ["--threshold", "0.7"], ["--labels", "strongest"]):
        done = segment(room, bundle, "in", "-p", "road", "-o", "few", "--skip-existing", *more)
        assert done.returncode == 0 and "skipped" not in done.stderr, more
        again = segment(room, bundle, "in", "-p", "road", "-o", "few", "--skip-existing", *more)
        assert "skipped" in again.stderr, more


def test_tiles_take_the_options_of_whole_pictures(room, bundle):
    words = ["in/a.png", "-p", "road", "-p", "trees", "--tile", "64", "-o", "out"]
    done = segment(room, bundle, *words, "--only", "masks", "--threshold", "0.2", "--labels", "strongest")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (room / "out").iterdir()) == ["a.json", "a.masks.npy"]
    body = json.loads((room / "out" / "a.json").read_text())
    assert body["threshold"] == 0.2 and body["label_rule"] == "strongest" and body["files"] == {"masks": "a.masks.npy"}
    masks = np.load(room / "out" / "a.masks.npy")
    assert masks.shape == (2, 96, 96) and [int(mask.sum()) for mask in masks] == [
        one["pixels"] for one in body["masks"]
    ]
    again = segment(room, bundle, *words, "--only", "masks", "--threshold", "0.2", "--skip-existing")
    assert "1 picture skipped" in again.stderr
    assert "skipped" not in segment(room, bundle, *words, "--threshold", "0.2", "--skip-existing").stderr
    done = segment(room, bundle, *words, "--labels", "parts")
    assert done.returncode == 2 and "known only when the whole picture was seen" in done.stderr
