"""docs/triton-server.md says what is so: its tensors, limits and figures are the real ones, its server lives."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.triton_server_process import STACK, VARIABLE
from benchmarks.triton_server_requests import BAD
from digseg_engine.serving.limits import IN_MEMORY, MIB, Limits
from digseg_engine.serving.triton_server import LIMITS, ROLES
from digseg_export.triton_config import BACKENDS, BATCH, DELAY

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "triton-server.md").read_text(encoding="utf-8")
SAID = " ".join(TEXT.split())


def test_its_tensors_are_those_of_the_models():
    tables = TEXT.partition("Name the outputs")[0]
    named = set(re.findall(r"`([A-Z]+)`", tables)) - {"NAME"}
    assert named == {border.name for ends in ROLES.values() for borders in ends for border in borders}
    for kind in ("UINT16", "BOOL", "FP32", "UINT8"):
        assert kind in tables


def test_its_limits_are_the_codes():
    limits = Limits()
    for words in (
        f"{limits.body // MIB} MiB of a file, {limits.pixels // 10**6} million pixels, {limits.prompts} prompts, "
        f"{limits.size:,} pixels",
        f"wait {DELAY // 1000} ms for others, at most {BATCH} pictures go together, {limits.queue} requests wait",
        f"refused over {IN_MEMORY // MIB} MiB", f"ulimit -s {STACK}", VARIABLE, *(f"`{name}`" for name in (*LIMITS, *BACKENDS)),
    ):  # fmt: skip
        assert words in SAID, words


def test_its_figures_are_the_committed_ones():
    found = json.loads((ROOT / "benchmarks" / "results" / "triton-server.json").read_text())
    both, alone, whole = found["together"], found["one_client"], found["counters"]["digseg-tiny-fp16"]
    assert found["server_lives"] and not found["stubs_that_died"] and not both["wrong"]
    assert both["good"] == both["good_equal"] and both["bad"] == both["bad_told_clearly"]
    assert both["worst"]["scores"] < 2e-7 and both["worst"]["labels"] == both["worst"]["masks"] == 0
    assert whole["execution_count"] < whole["inference_count"]
    for words in (
        f"{both['clients']} clients sent {both['good']} good requests and {both['bad']} bad ones of {len(BAD)} kinds",
        f"answered {whole['inference_count']} requests in {whole['execution_count']} executions, up to "
        f"{max(map(int, whole['executions_of_size']))} at once", found["date"], f"ready {found['ready_seconds']:.0f} s",
        f"at {both['good_per_second']:.1f} a second, against {alone['good_per_second']:.1f} a second for one client",
        f"release {found['versions']['tritonserver'].rpartition('.')[0]}", f"load {found['machine']['load_before']:.0f}",
    ):  # fmt: skip
        assert words in SAID, words
