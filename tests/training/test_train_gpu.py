"""benchmarks/train_gpu.py without a GPU: its own way with a small model, what it leaves out, and what it refuses."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "train_gpu.py"
ROOM = runpy.run_path(str(BENCHMARK))


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *map(str, words)])
    runpy.run_path(str(BENCHMARK), run_name="__main__")


@pytest.fixture
def bench(nano_preset, raw_tokenizer):
    """The nano model on the CPU."""
    from nano_models import build_nano

    return ROOM["Bench"](lambda: build_nano(nano_preset, raw_tokenizer), 64, torch.device("cpu"), "no", 1, 16, 2)


@pytest.mark.slow
def test_every_stage_is_timed_and_takes_what_is_counted(bench):
    kept = [case for case in ROOM["cases"](2, "no", False) if not case.config.gradient_checkpointing]
    chosen = [replace(case, config=replace(case.config, prompts=3, accumulate=2)) for case in kept]
    rows, left_out = ROOM["run"](bench, chosen, 600, False)
    assert left_out == [] and [row["case"].split(",")[0] for row in rows] == [
        "reference",
        "one_step",
        "few_step",
        "student",
    ]
    for row in rows:
        assert row["micro_seconds"] > 0 and row["update_seconds"] > 0, row
        assert row["step_seconds"] == 2 * row["micro_seconds"] + row["update_seconds"]
        assert row["counted_gb"] == round(row["counted"]["peak"] / 1e9, 6) > 0
        # tensors without contents against real ones; the count has the student imitate in every micro-batch
        assert 0.99 <= row["counted_over_measured"] <= 1.05, row


def test_the_cases_are_the_recipes_stages_in_their_thrifts():
    cases = ROOM["cases"](None, "bf16", True)
    assert [case.name for case in cases[:3]] == [
        "reference, activations kept, adamw", "reference, activations twice, adamw", "reference, activations twice, adamw8bit"
    ]  # fmt: skip
    assert len(cases) == 12 and {case.config.precision for case in cases} == {"bf16"}
    assert [(case.config.batch, case.config.accumulate) for case in cases[::3]] == [(4, 8), (2, 16), (4, 8), (4, 4)]
    assert {case.config.batch for case in ROOM["cases"](3, "bf16", False)} == {3}


def test_cases_for_which_no_time_is_left_are_named_and_what_fails_is_a_row(bench, monkeypatch):
    chosen = ROOM["cases"](2, "no", False)[:2]
    rows, left_out = ROOM["run"](bench, chosen, 0, True)
    assert len(rows) + len(left_out) == 2 and left_out[-1] == chosen[1].name

    def full(bench, case, peak):
        raise torch.OutOfMemoryError("Tried to allocate\n2 GiB")

    monkeypatch.setitem(ROOM["measured"].__globals__, "timed", full)
    ((row,), _) = ROOM["run"](bench, chosen[:1], 60, False)
    assert row["failed"] == "Tried to allocate 2 GiB" and row["counted_gb"] >= 0 and "peak_gb" not in row


@pytest.mark.slow
def test_the_command_writes_its_file(tmp_path, monkeypatch, capsys):
    small = ("--model", "tiny", "--size", "32", "--batch", "1", "--stages", "reference")
    run(monkeypatch, *small, "--count-only", "--minutes", "0", "-o", tmp_path / "out.json")
    body = json.loads((tmp_path / "out.json").read_text())
    assert len(body["rows"]) == 3 and body["model"] == "tiny" and body["precision"] == "bf16" and body["left_out"] == []
    assert "--count-only" in body["command"] and all("micro_seconds" not in row for row in body["rows"])
    eight = {row["case"]: row["counted"]["optimizer"] for row in body["rows"]}
    assert eight["reference, activations twice, adamw8bit"] < 0.3 * eight["reference, activations twice, adamw"]
    assert f"written to {tmp_path / 'out.json'}" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for words, said in (
        ((), "no NVIDIA GPU is visible; --count-only"),
        (("--device", "cpu"), "name its file with --output"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, *words)
        assert said in capsys.readouterr().err
