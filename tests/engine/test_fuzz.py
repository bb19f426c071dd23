"""A slice of scripts/fuzz_pictures.py: damaged files of every format are read or refused by name, never anything else."""

import importlib.util
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_pictures.py"


def load_script():
    spec = importlib.util.spec_from_file_location("fuzz_pictures", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch):
    fuzz = load_script()
    monkeypatch.setenv("DIGSEG_MAX_PIXELS", str(fuzz.MOST_PIXELS))
    counts = Counter(said for _, said in fuzz.outcomes(1000, 20, tmp_path))
    assert set(counts) == {"read", "refused"} and min(counts.values()) > 100, counts


def test_sound_files_are_all_read_and_the_damages_are_the_same_every_time(tmp_path):
    fuzz = load_script()
    for name, body in fuzz.whole_files().items():
        (tmp_path / name).write_bytes(body)
        assert fuzz.outcome(tmp_path / name) == "read", name
        assert fuzz.damaged(body, fuzz.random.Random(name)) == fuzz.damaged(body, fuzz.random.Random(name))


def test_a_reader_that_raises_anything_else_is_found(tmp_path, monkeypatch):
    fuzz = load_script()

    def broken(path):
        raise KeyError("tag")

    monkeypatch.setattr(fuzz, "READERS", (broken,))
    assert {said for _, said in fuzz.outcomes(3, 0, tmp_path)} == {"broken: KeyError: 'tag'"}
    assert len(list(tmp_path.iterdir())) == 3
