"""What the fuzzers of the C library's readers begin with and once found: as it should be. The fuzzers
themselves, under sanitizers, are run by scripts/fuzz_native.py; a short slice of each before a release."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from native_fixtures import *  # noqa: F403
from native_fixtures import slow
from programs import run_program
from safetensors import SafetensorError
from safetensors import deserialize as parsed

ROOT = Path(__file__).resolve().parents[2]
FUZZ = ROOT / "kernels" / "tests" / "fuzz"
SCRIPT = ROOT / "scripts" / "fuzz_native.py"


def script():
    spec = importlib.util.spec_from_file_location("fuzz_native", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replay(installed, reader, *paths):
    done = run_program([installed / "programs" / "replay", reader, *paths])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("reader", script().READERS)
def test_seeds_reach_both_ends_of_a_reader(installed, reader):
    seeds = sorted((FUZZ / "seeds" / reader).iterdir())
    read, refused = (int(word.split()[0]) for word in replay(installed, reader, *seeds).split(", "))
    assert read >= 2 and read + refused == len(seeds) and sum(path.stat().st_size for path in seeds) < 20_000
    assert refused >= (0 if reader == "tokenizer" else 1)


@pytest.mark.parametrize("path", sorted((FUZZ / "found").glob("*/*")), ids=lambda path: path.name)
def test_what_once_broke_a_reader_is_refused(installed, path):
    assert replay(installed, path.parent.name, path) == "0 read, 1 refused"


@pytest.mark.parametrize("path", sorted((FUZZ / "seeds" / "safetensors").iterdir()), ids=lambda path: path.name)
def test_tensors_are_taken_where_the_library_of_their_format_takes_them(installed, path):
    try:
        parsed(path.read_bytes())
        wanted = "1 read, 0 refused"
    except SafetensorError:
        wanted = "0 read, 1 refused"
    assert replay(installed, "safetensors", path) == wanted


@slow
def test_a_slice_of_every_fuzzer(tmp_path):
    if script().clang() is None:
        pytest.skip("no Clang here")
    room = {f"--{name}": tmp_path / name for name in ("build", "corpus", "found", "room")}
    words = [word for pair in room.items() for word in pair]
    done = run_program([sys.executable, SCRIPT, "--seconds", 10, "--json", tmp_path / "figures.json", *words])
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["readers"]
    assert set(figures) == set(script().READERS)
    assert all(each["executions"] > 100 and each["edges"] > 100 and not each["broke"] for each in figures.values())
