"""Starts the real Triton Inference Server on loopback, on a CPU, for tests and `benchmarks/triton_server.py`.

$DIGSEG_TRITONSERVER names a virtual environment into which nvidia-pytriton was installed, whose wheel holds the server's
binary and its Python backend, with what the engine needs beside it; docs/triton-server.md says how to make one. The code that is
served is this checkout's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "DIGSEG_TRITONSERVER"
STACK = (
    512 * 1024
)  # KiB of every thread: with the usual 8 MiB a request of 4 MiB ends release 2.51, whose HTTP keeps it there
PATIENCE = 600.0  # seconds that the server may take to be ready, or to end
ASKS = (
    "import json, sys, sysconfig; print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_config_var('LIBDIR'), \
'%d.%d' % sys.version_info[:2]]))"
)


@dataclass(frozen=True)
class Server:
    """A running server. address: of its HTTP."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def counted(self, model: str) -> tuple[int, int]:
        """(requests' pictures, executions) of a model that succeeded, by the server's own counters."""
        found = self.get(f"/v2/models/{model}/stats")["model_stats"][0]
        return int(found["inference_count"]), int(found["execution_count"])

    @property
    def lives(self) -> bool:
        if self.process.poll() is not None:
            return False
        with suppress(urllib.error.URLError, OSError):
            self.get("/v2/health/ready")
            return True
        return False


def environment() -> Path | None:
    """The folder that $DIGSEG_TRITONSERVER names, where the server is in it."""
    folder = Path(os.environ.get(VARIABLE) or "/nowhere")
    return folder if list(folder.glob("lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver")) else None


@contextmanager
def serving(repository: Path, room: Path, *words: str) -> Iterator[Server]:
    """The server over a repository, until the block ends. room: an empty folder for what it needs beside. Raises RuntimeError
    with the end of its log where it does not start."""
    folder = environment()
    if folder is None:
        raise RuntimeError(f"${VARIABLE} names no virtual environment with nvidia-pytriton; see docs/triton-server.md")
    asked = subprocess.run([folder / "bin" / "python", "-c", ASKS], capture_output=True, text=True, check=True)
    packages, libraries, version = json.loads(asked.stdout)
    server = Path(packages) / "pytriton" / "tritonserver"
    room.mkdir(parents=True, exist_ok=True)
    backends, python = _backends(server, version, room), _python(folder, packages, version, room)
    log = room / "server.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["bash", "-c", 'ulimit -s "$0"; exec "$@"', str(STACK), str(server / "bin" / "tritonserver"),
               f"--model-repository={repository}", f"--backend-directory={backends}", f"--cache-directory={server / 'caches'}",
               "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false",
               "--allow-metrics=false", "--model-control-mode=none", *words]  # fmt: skip
    variables = {
        **os.environ, "PATH": f"{python / 'bin'}{os.pathsep}{os.environ['PATH']}", "DIGSEG_CACHE": str(room / "cache"),
        "LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep),
    }  # fmt: skip
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=variables, start_new_session=True)
    try:
        found = Server(f"http://127.0.0.1:{port}", process, log)
        _wait(found)
        yield found
    finally:
        _end(process)


def _wait(server: Server) -> None:
    began = time.monotonic()
    while not server.lives:
        if server.process.poll() is not None or time.monotonic() - began > PATIENCE:
            lines = server.log.read_text(errors="replace").splitlines()
            raise RuntimeError(
                "the server did not start:\n" + "\n".join(line for line in lines if line[:1] not in "I+|")[-3000:]
            )
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """In order, and if it does not, with everything that it started."""
    with suppress(ProcessLookupError):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _backends(server: Path, version: str, room: Path) -> Path:
    """The Python backend with the process that holds a model, of the right Python."""
    folder = room / "backends" / "python"
    folder.mkdir(parents=True)
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for path in (*(server / "backends" / "python").iterdir(), stub):
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder.parent


def _python(folder: Path, packages: str, version: str, room: Path) -> Path:
    """A virtual environment that is that folder's with this checkout before it. The stub finds it by PATH, and reads no
    PYTHONPATH."""
    made = room / "python"
    site = made / "lib" / f"python{version}" / "site-packages"
    site.mkdir(parents=True)
    (made / "bin").mkdir()
    (made / "pyvenv.cfg").write_text((folder / "pyvenv.cfg").read_text())
    for name in ("python", "python3"):
        (made / "bin" / name).symlink_to((folder / "bin" / "python").resolve())
    (site / "digseg.pth").write_text(f"{ROOT}\n{packages}\n")
    return made
