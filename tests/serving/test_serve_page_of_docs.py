"""docs/serve.md says what is so: its requests are answered, its codes, limits and figures are the real ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from serving_cases import ROOT
from serving_fixtures import *  # noqa: F403

from digseg_engine.serving import problems
from digseg_engine.serving.limits import MIB, Limits

TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8765"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)


def test_its_requests_are_answered(server, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (python,) = [body for language, body in BLOCKS if language == "python"]
    exec(compile(python.replace(ADDRESS, server), "docs/serve.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("road True 0.9")
    asked = [line for _, body in BLOCKS for line in body.splitlines() if line.startswith("curl ")]
    assert len(asked) == 2
    for line in asked if shutil.which("curl") else ():
        done = subprocess.run([*shlex.split(line.replace(ADDRESS, server)), "-sf"], capture_output=True, check=True)
        assert {"masks", "id"} & set(json.loads(done.stdout))


def test_its_codes_are_all_there_are():
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| \d.*? \| (.*?) \|", TEXT, re.M))))
    source = "".join(path.read_text() for path in (ROOT / "digseg_engine" / "serving").glob("*.py"))
    raised = set(re.findall(r"RequestError\(\s*\d+, \"(\w+)\"", source)) | {
        "malformed",
        "failed",
        "not_found",
        "method_not_allowed",
    }
    assert listed == raised - {"gone"} and problems.gone().status == 499


def test_its_limits_are_the_codes():
    limits, said = Limits(), TEXT.replace("\n", " ")
    wanted = [
        f"a request over {limits.body // MIB} MiB", f"over {limits.pixels // 10**6} million pixels",
        f"a size over {limits.size:,}", f"more than {limits.prompts} of them", f"{limits.queue} requests wait",
        f"take {limits.bodies // MIB} MiB", f"within {limits.header_seconds:g} seconds",
        f"longer than {limits.body_seconds:g} seconds", f"(within {limits.drain_seconds:g} seconds)",
        f"until {limits.encoding_seconds / 60:g} minutes after", f"over {limits.connections:,} connections",
        f"at most {limits.encodings} of them and {limits.encoding_bytes // MIB} MiB",
    ]  # fmt: skip
    for words in wanted:
        assert words in said, words


def test_its_figures_are_the_committed_ones():
    found = json.loads((ROOT / "benchmarks" / "results" / "serve.json").read_text())
    load, alone, said = found["load"], found["one_client"], TEXT.replace("\n", " ")
    assert load["errors"] == {} and found["exit_code"] == 0
    latency, memory = load["latency_ms"]["all"], load["memory_mib"]
    gains = sorted(row["gain"] for row in found["batches"].values())
    wanted = [
        f"{load['clients']} clients", f"for {load['seconds']:g} seconds", f"{load['requests']:,} requests", found["date"],
        f"half within {latency['p50'] / 1000:.1f} s and 99 % within {latency['p99'] / 1000:.1f} s",
        f"{memory['halfway']:.0f} MiB halfway and {memory['end']:.0f} MiB at the end",
        f"{found['kept']['counted_mib']:.1f} MiB as counted and {found['kept']['process_mib']:.1f} MiB of the process",
        f"{alone['second_over_first']:.2f} of the first", f"{gains[0]:.2f} to {gains[-1]:.2f} times",
    ]  # fmt: skip
    for words in wanted:
        assert words in said, words


def test_its_picture_is_small():
    assert 20_000 < Path(ROOT / "docs" / "serve.png").stat().st_size < 200_000
