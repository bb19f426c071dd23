"""The comparison with peers and the waterfall: rows, ratios, what is resumed and what is said of them, with ours as it runs."""

import json
import sys
from pathlib import Path

import pytest
from programs import run_program

from benchmarks import report_speed, speed_peers
from benchmarks.peers import environments, registry

ROOT = Path(__file__).resolve().parent.parent


def figures(**medians):
    """Figures of one size and question: ours at K = 1 and 8, and peers."""
    rows = [{"peer": name.replace("_", "-"), "size": 256, "prompts": k, "question": "first", "median_ms": ms, "p95_ms": ms,
             "over_ours": 1.0} for name, each in medians.items() for k, ms in zip((1, 8), each)]  # fmt: skip
    names = dict.fromkeys(row["peer"] for row in rows)
    counts = {"parameters": 2e6, "flops": {"1": {"first": 3e9}, "8": {"first": 4e9}}, "peak_bytes": 2**20}
    peers = {name: {"title": name.upper(), "weights": "random", "sizes": {"256": dict(counts)}} for name in names}
    return {"rows": rows, "peers": peers}


def test_a_ratio_is_the_median_over_rounds_of_what_stood_beside_it():
    found = speed_peers.row([10.0, 40.0, 100.0], [5.0, 10.0, 100.0])
    assert found["over_ours"] == 2.0  # of 2, 4 and 1; the medians' ratio would be 4
    assert found["median_ms"] == 40.0 and found["rounds"] == 3


def test_rows_that_are_there_are_not_asked_for_again():
    rows = {("digseg-onnxruntime", 256, 1, "first"): {}}
    assert speed_peers.missing(rows, ["digseg-onnxruntime", "yolo11n-seg-onnx"], 256, [1]) == [
        ("digseg-onnxruntime", 256, 1, "later"), ("digseg-onnxruntime", 256, 1, "whole"),
        ("yolo11n-seg-onnx", 256, 1, "first"),
    ]  # fmt: skip


def test_peers_that_are_faster_than_our_fastest_backend_are_named():
    found = figures(digseg_onnxruntime=(10, 20), digseg_openvino=(8, 30), nano=(4, 25), big=(9, 19))
    found["peers"]["nano"]["sizes"]["256"]["flops"] = {"1": {"first": 1.5e9}}
    said = report_speed.slower(found)
    assert "- NANO, first question at 256 px: 2.0 x at K = 1 (0.50 of our operations)\n" in said
    assert (
        "- BIG, first question at 256 px: 1.1 x at K = 8 (1.00 of our operations)\n" in said and said.count("\n- ") == 2
    )
    assert "No peer" in report_speed.slower(figures(digseg_onnxruntime=(10, 20), big=(11, 21)))


def test_a_peer_that_did_not_run_says_why_in_the_table():
    found = figures(digseg_onnxruntime=(10, 20), nano=(4, 25))
    found["peers"]["nano"]["sizes"]["256"] = {"reason": "no such package"}
    head, lines = report_speed.peers_table(found, 256)
    assert lines[1][2] == "not measured: no such package" and {len(line) for line in lines} == {len(head)}


def test_a_failed_row_is_no_figure():
    found = figures(digseg_onnxruntime=(10, 20), nano=(4, 25))
    found["rows"][-1] = {"peer": "nano", "size": 256, "prompts": 8, "question": "first", "reason": "out of memory"}
    assert report_speed.peers_table(found, 256)[1][1][-5:] == ["4.0 (4.0), 1.00 x", "-", "-", "-", "1"]


def test_every_peer_has_an_environment_that_a_script_makes():
    for name, peer in registry.PEERS.items():
        assert peer.environment in ("", *environments.ENVIRONMENTS), name
    needs = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "ultralytics" not in needs and "torchvision" not in needs


def test_a_process_that_cannot_open_its_peer_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"FileNotFoundError.*about\.json"):
        speed_peers.Worker("reference-onnx", 256, tmp_path, tmp_path, 1)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_left(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGSEG_PEERS", str(tmp_path / "peers"))
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.speed_peers", "-o", output, "--peers", "digseg-onnxruntime", "--sizes", "256",
               "--prompts", "1", "2", "--rounds", "2"]  # fmt: skip
    done = run_program(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    whole = json.loads(output.read_text())
    assert len(whole["rows"]) == 6 and all(len(row["ms"]) == 2 and row["median_ms"] > 0 for row in whole["rows"])
    about = whole["peers"]["digseg-onnxruntime"]["sizes"]["256"]
    assert about["flops"]["2"]["first"] > about["flops"]["1"]["first"] > 1e9 and about["peak_bytes"] > 2**20
    assert output.with_suffix(".png").is_file()
    lost = whole["rows"].pop()
    output.write_text(json.dumps(whole))
    assert run_program(command, cwd=ROOT).returncode == 0
    again = json.loads(output.read_text())
    assert again["rows"][:-1] == whole["rows"] and len(again["runs"]) == 2
    assert [again["rows"][-1][key] for key in ("prompts", "question")] == [lost["prompts"], lost["question"]]


@pytest.mark.slow
def test_the_waterfalls_unfolded_student_is_the_student():
    """Cross-attention for every prompt at full width gives what the folded graphs give: the step measures the same network."""
    import torch

    from benchmarks import waterfall
    from digseg_engine.model.pretrained import load_checkpoint

    torch.manual_seed(0)
    checkpoint = load_checkpoint()
    case = next(waterfall.cases(1, 4, 64, checkpoint.stride))
    with torch.no_grad():
        plain, folded = waterfall.unfolded(checkpoint)(case), waterfall.folded(checkpoint)["first"](case)
    assert plain.shape[0] == folded.shape[0] == 4
    assert float((plain.flatten() - folded.flatten()).norm() / folded.norm()) < 1e-4
