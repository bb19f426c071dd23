"""Run interpreter_cases.py in its own process: TRITON_INTERPRET must be set before triton is imported."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from programs import run_program

pytest.importorskip("triton.language", reason="triton is not installed: the kernels cannot be interpreted")
CASES = Path(__file__).with_name("interpreter_cases.py")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Failure text, or None, of every interpreted case."""
    report = tmp_path_factory.mktemp("interpreter") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = run_program(command, env=environment)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [child.get("message") or child.text for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.get("name", "")] = bad[0] if bad else None
    return found


@pytest.mark.parametrize(
    ("prefix", "at_least"),
    [("text_injection", 36), ("cross_attention", 20), ("latent_concat", 16), ("sampler_step", 8), ("mask_argmax", 10),
     ("guard_bands", 1)],
)  # fmt: skip
@pytest.mark.slow
def test_kernels_under_the_interpreter(outcomes, prefix, at_least):
    mine = {name: bad for name, bad in outcomes.items() if name.startswith(f"test_{prefix}")}
    assert len(mine) >= at_least, f"only {sorted(mine)} ran"
    failed = {name: bad for name, bad in mine.items() if bad is not None}
    assert not failed


def test_bfloat16_is_left_to_the_gpu():
    pytest.skip("Triton's interpreter multiplies bfloat16 bit patterns; bf16 is checked by benchmarks/gpu.py on a GPU")
