"""benchmarks/gpu.py without a GPU: the one-line refusal, the dry run, and the arithmetic behind its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import run_program

import digseg_triton

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(digseg_triton.__path__[0]).parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return run_program(command, env=environment)


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_targets
    import rooflines

    return rooflines, gpu_targets


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_line():
    done = run("--kernels")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA GPU here, nothing was measured" in done.stderr
    assert run().returncode == 2


@pytest.mark.slow
def test_dry_run_checks_every_case_and_times_none(tmp_path):
    done = run("--kernels", "--dry-run", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert found["dry_run"] is True
    assert found["ceilings"] is None
    assert len(found["checks"]) == 42
    assert all(row["ok"] for row in found["checks"])
    assert {row["dtype"] for row in found["checks"]} == {"fp16", "bf16", "fp32"}
    assert {row["op"] for row in found["rows"]} == {"text_injection", "cross_attention", "latent_concat", "mask_argmax"}
    assert {"triton", "eager", "compile", "sdpa", "twin"} <= {row["provider"] for row in found["rows"]}
    for row in found["rows"]:
        assert row["bytes"] > 0
        assert row["cold_ms"] is row["graph_ms"] is row["gb_per_s"] is row["share_of_roofline"] is None
    assert {target["outcome"] for target in found["targets"]} == {"not measured"}


def test_rates_and_roofline(benchmark_modules, tmp_path):
    rooflines, _ = benchmark_modules
    ceilings = rooflines.Ceilings(4000.0, {"fp16": 800.0, "bf16": 800.0, "fp32": 50.0})
    assert ceilings.floor_ms(4_000_000_000, 0, "fp16") == pytest.approx(1.0)
    assert ceilings.floor_ms(1, 1_600_000_000_000, "fp16") == pytest.approx(2.0)
    found = rooflines.rates(2.0, 4_000_000_000, 400_000_000_000, "fp16", ceilings)
    assert found["gb_per_s"] == pytest.approx(2000)
    assert found["tflop_per_s"] == pytest.approx(200)
    assert found["share_of_bandwidth"] == found["share_of_roofline"] == pytest.approx(0.5)
    assert set(rooflines.rates(None, 1, 1, "fp16", ceilings).values()) == {None}
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no roofline picture")
    rows = [{"provider": "triton", "graph_ms": 0.01, "flops": 10**9, "bytes": 10**7}]
    assert rooflines.plot(rows, ceilings, "test", tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_ceilings_are_work_over_time(benchmark_modules):
    rooflines, _ = benchmark_modules
    calls = []
    found = rooflines.measure_ceilings(lambda f: calls.append(f()) or 0.5, torch.device("cpu"), 64)
    assert found.gb_per_s == pytest.approx(2 * 64 * 64 * 4 / 0.5 / 1e6)
    assert found.tflop_per_s["fp16"] == pytest.approx(2 * 64**3 / 0.5 / 1e9)
    assert found.tflop_per_s["fp32"] == pytest.approx(2 * 32**3 / 0.5 / 1e9)
    assert len(calls) == 4


def test_targets_are_judged_both_ways(benchmark_modules):
    _, gpu_targets = benchmark_modules

    def row(provider, ms, share=None, memory=1):
        case = {"op": "text_injection", "case": "sd21 N=4096 K=20", "provider": provider}
        return case | {"graph_ms": ms, "share_of_bandwidth": share, "peak_bytes": memory}

    rows = [row("triton", 1.0, 0.7), row("compile", 1.4), row("sdpa", 1.6)]
    rows += [dict(row("triton", 1.0, memory=10), op="mask_argmax", case="1024 px K=150"),
             dict(row("eager", 3.5, memory=200), op="mask_argmax", case="1024 px K=150")]  # fmt: skip
    by_target = {target["target"]: target["outcome"] for target in gpu_targets.outcomes(rows)}
    case = "text_injection sd21 N=4096 K=20: at least"
    assert by_target[f"{case} 1.5 x faster than compile"] == "missed"
    assert by_target[f"{case} 1.5 x faster than sdpa"] == "met"
    assert by_target[f"{case} 1.5 x faster than sdpa without mask"] == "not measured"
    assert by_target[f"{case} 60 % of the bandwidth ceiling"] == "met"
    assert by_target["mask_argmax 1024 px K=150: at most a tenth of eager's memory"] == "met"
    assert by_target["text_injection sd21 N=4096 K=150: at least 60 % of the bandwidth ceiling"] == "not measured"
