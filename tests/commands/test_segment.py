"""The command line as a user meets it: files, folders, patterns, and every kind of bad input."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import run_command
from PIL import Image

from digseg_engine import __version__
from digseg_engine.worlds.scenes import scene


@pytest.fixture
def room(tmp_path, bundle):
    for seed in range(3):
        Image.fromarray(scene(seed, "objects", 96, "demo").image).save(tmp_path / f"p{seed}.png")
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "p0.png", tmp_path / "folder" / "p0.png")
    shutil.copy(tmp_path / "p1.png", tmp_path / "folder" / "UPPER.PNG")
    (tmp_path / "folder" / "notes.txt").write_text("not a picture")
    return tmp_path


def segment(room, bundle, *arguments):
    return run_command("digseg", "segment", *arguments, "-b", str(bundle), cwd=room)


def test_files_folders_and_patterns(room, bundle):
    done = segment(room, bundle, "p2.png", "folder", "p[01].png", "-p", "red circle", "-p", "a star", "-o", "out")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (room / "out").glob("*.overlay.png"))
    clash = ["folder-p0.png.overlay.png", "p0.png.overlay.png"]  # two pictures are called p0.png
    assert names == sorted(["UPPER.overlay.png", "p1.overlay.png", "p2.overlay.png", *clash])
    assert len(done.stdout.strip().splitlines()) == 5
    assert json.loads((room / "out" / "p2.json").read_text())["masks"][1]["prompt"] == "a star"


def test_a_broken_picture_does_not_stop_the_others(room, bundle):
    (room / "folder" / "broken.png").write_bytes((room / "p0.png").read_bytes()[:200])
    done = segment(room, bundle, "folder", "-p", "red", "-o", "out")
    assert done.returncode == 2
    assert "broken.png cannot be decoded" in done.stderr and "1 of 3 pictures" in done.stderr
    assert len(list((room / "out").glob("*.json"))) == 2 and not list((room / "out").glob("broken*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.png", "-p", "red"], "nothing.png: file not found"),
        (["p0.png"], "no prompt given"),
        (["p0.png", "-p", ""], "prompt 0 is empty"),
        (["p0.png", "-p", "red " * 90], "at most 77 fit"),
        (["folder/notes.txt", "-p", "red"], "not a picture"),
        (["*.webp", "-p", "red"], "matches no picture"),
        (["empty", "-p", "red"], "holds no picture"),
        (["p0.png", "-p", "red", "-o", "p1.png"], "is a file"),
        (["p0.png", "-p", "red", "-o", "p1.png/deep"], "cannot write"),
        (["p0.png", "-p", "red", "--backend", "gpu"], "unknown backend"),
        (["p0.png", "-p", "red", "--imgsz", "9"], "working size"),
        (["p0.png", "-p", "red", "--imgsz", "big"], "--imgsz"),
        (["p0.png", "-p", "red", "--colour", "x"], "--colour"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(room, bundle, arguments, words):
    (room / "empty").mkdir()
    done = segment(room, bundle, *arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("digseg: error: ") and words in line
    assert not (room / "out").exists() or not list((room / "out").iterdir())


def test_a_damaged_bundle_is_exit_code_1(room, bundle):
    damaged = room / "damaged"
    shutil.copytree(bundle, damaged)
    weights = damaged / "mask_decoder.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)
    done = segment(room, damaged, "p0.png", "-p", "red")
    assert done.returncode == 1 and "mask_decoder.data is damaged: SHA-256" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    manifest = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps({**manifest, "format": "digseg.bundle/1"}))
    done = segment(room, damaged, "p0.png", "-p", "red")
    assert done.returncode == 1 and "this release reads 'digseg.bundle/2'" in done.stderr
    assert "digseg-export CHECKPOINT --precision fp16" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    done = run_command("digseg", "segment", "p0.png", "-p", "red", "-b", "nowhere", cwd=room)
    assert done.returncode == 1 and "bundle nowhere not found" in done.stderr


def test_pictures_of_any_kind_pass(room, bundle):
    picture = Image.open(room / "p0.png")
    (room / "kinds").mkdir()
    picture.convert("RGBA").save(room / "kinds" / "alpha.png")
    picture.convert("CMYK").save(room / "kinds" / "cmyk.jpg")
    picture.convert("P").save(room / "kinds" / "palette.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(room / "kinds" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    picture.crop((0, 0, 96, 64)).save(room / "kinds" / "turned.jpg", exif=exif)
    done = segment(room, bundle, "kinds", "-p", "circle", "-o", "out")
    assert done.returncode == 0, done.stderr
    turned = json.loads((room / "out" / "turned.json").read_text())
    assert (turned["width"], turned["height"]) == (64, 96)


def test_the_environment_names_the_bundle(room, bundle):
    done = run_command("digseg", "segment", "p0.png", "-p", "red", cwd=room, env={"DIGSEG_BUNDLE": str(bundle)})
    assert done.returncode == 0 and (room / "out" / "p0.mask.red.png").is_file()


def test_doctor_shows_what_runs(room, bundle):
    asked = ["--bundle", str(bundle), "--size", "64", "--prompts", "1", "--prompts", "20", "--json", "choice.json"]
    done = run_command("digseg", "doctor", *asked, cwd=room, env={"COLUMNS": "300"})
    assert done.returncode == 0, done.stderr
    assert (
        "CPUExecutionProvider" in done.stdout and "golden sample" in done.stdout and "all hashes match" in done.stdout
    )
    assert "digseg-export" in done.stdout and '[tensorrt]"' in done.stdout
    written = json.loads((room / "choice.json").read_text())
    assert [table["task"]["prompts"] for table in written["tables"]] == [1, 20] and written["machine"]["processor"]
    for table in written["tables"]:
        (chosen,) = [row for row in table["rows"] if row["chosen"]]
        assert chosen["backend"].startswith(("onnxruntime", "openvino")) and chosen["right"] and chosen["ms"] > 0
    done = run_command("digseg", "doctor", "--json", "choice.json", cwd=room)
    assert done.returncode == 2 and "no effect without --bundle" in done.stderr


def test_doctor_fits_eighty_columns(room):
    done = run_command("digseg", "doctor", cwd=room, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    table, _, cures = done.stdout.partition("to get the rest:")
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert rows and all(len(line) <= 80 for line in table.splitlines())
    words = " ".join(line.split("│")[3] for line in rows).split()
    assert "CPUExecutionProvider" in words  # no word is cut in two
    parts = [line.split("│")[1].strip() for line in rows]
    assert len(set(filter(None, parts))) == len([part for part in parts if part])
    assert '[tensorrt]"' in cures and len(cures.splitlines()) == len(set(cures.splitlines()))


def test_doctor_tells_of_a_gpu_with_its_memory_and_of_a_pytorch_that_leaves_it_idle(tmp_path, monkeypatch):
    from digseg_engine.runtime import doctor

    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$1" in *memory.total,memory.free*) echo "NVIDIA Test, 580.1, 8192 MiB, 7000 MiB";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gpu = doctor._gpu()
    assert gpu.usable and gpu.detail.endswith("8192 MiB, 7000 MiB")
    for version, rows in (("2.13.0+cpu", 1), ("2.13.0+cu130", 0), ("2.13.0", 0)):
        monkeypatch.setattr(doctor, "_version", lambda module, version=version: version)
        found = doctor._torch_for(gpu)
        assert len(found) == rows and all(not row.usable and "build for the CPU" in row.reason for row in found)


def test_scenes_and_version(room):
    done = run_command("digseg", "scenes", "--size", "64", "--domain", "crops", "-o", "made", cwd=room)
    assert done.returncode == 0 and Image.open(room / "made" / "crops-0.png").size == (64, 64)
    assert run_command("digseg", "--version", cwd=room).stdout.strip() == f"digseg-engine {__version__}"
    done = run_command("digseg", "scenes", "--domain", "space", cwd=room)
    assert done.returncode == 2 and "unknown scene domain 'space'" in done.stderr


def test_eval_prints_and_writes_the_same_figures(room, bundle):
    done = run_command("digseg", "eval", "--model", str(bundle), "--data", "scenes:aerial", "--count", "2", "--size", "64",
                       "--report", "r.json", cwd=room)  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((room / "r.json").read_text())["figures"]
    assert f"{figures['aerial']:.3f}" in done.stdout
    done = run_command("digseg", "eval", "--data", "scenes:space", cwd=room)
    assert done.returncode == 2 and "unknown scene domain" in done.stderr
