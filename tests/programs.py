"""Other programs run by tests: one generous time limit against hanging, and nothing that was started outlives it.

The limit says nothing about speed. DIGSEG_TEST_PATIENCE multiplies it on a slow or busy machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LIMIT = 3000.0 * float(os.environ.get("DIGSEG_TEST_PATIENCE", "1"))  # seconds; the longest takes 250 on a quiet machine


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process that was started in a session of its own, with everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run_program(
    command: Sequence[object], cwd: Path | str | None = None, env: Mapping[str, str] | None = None, limit: float = LIMIT,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run to the end and capture text. Raises TimeoutExpired after `limit` seconds, with all its children gone."""
    words = [str(part) for part in command]
    process = subprocess.Popen(
        words, cwd=cwd, env=None if env is None else dict(env), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(stdin, timeout=limit)
    except BaseException:
        end(process)
        raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)
