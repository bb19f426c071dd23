"""What tests of the server share: a client of the application, and the command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import end

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "contourpy", "httpx"):
    pytest.importorskip(package, reason="digseg serve is not installed: pip install -e '.[serve]' httpx")
ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"


@contextmanager
def client_of(engines, limits=None, **options):
    """A client of the application; its lifespan runs."""
    from starlette.testclient import TestClient

    from digseg_engine.serving.app import create_app

    guard = create_app(engines, limits, **options)
    with TestClient(guard, base_url="http://localhost", raise_server_exceptions=False) as client:
        client.guard = guard
        client.service = guard.app.state.service
        yield client


@contextmanager
def serving(bundle, *words, env=None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`digseg serve` on a free port: its address, and the process."""
    command = [sys.executable, "-m", "digseg_engine", "serve", str(bundle), "--port", "0", "--backend", "onnxruntime",
               "--threads", "1", *words]  # fmt: skip
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               env={**os.environ, **(env or {})}, cwd=ROOT)  # fmt: skip
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), process.communicate()
        yield address.rstrip("/"), process
    finally:
        if process.poll() is None:
            end(process)
        else:
            process.communicate()
