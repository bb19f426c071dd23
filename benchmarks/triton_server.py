"""A bundle behind the real Triton Inference Server on a CPU: `DIGSEG_TRITONSERVER=FOLDER python benchmarks/triton_server.py`.

`digseg-export --triton-repository` writes the repository; the server's own binary serves it on loopback. Parallel clients send
good and bad requests, mixed. Every good answer is compared with the engine's own, every bad one shall be told what is wrong, and
the server shall be the same process at the end. How far requests were put together is said by the server's own counters. A second
part asks the same good questions one after the other, by one client. Clients and server share the machine. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.triton_server_process import Server, environment, serving
from benchmarks.triton_server_requests import Bad, Good, bad_requests, differences, good_requests
from digseg_engine import Engine
from digseg_engine.named import SHIPPED_BUNDLE

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "triton-server.json"


def export(bundle: Path, folder: Path, *words: str) -> None:
    """The command, as its user types it."""
    command = [
        sys.executable,
        "-m",
        "digseg_export",
        "--bundle",
        str(bundle),
        "--triton-repository",
        str(folder),
        "--quiet",
        *words,
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def counters(server: Server, model: str) -> dict[str, Any]:
    """The server's own figures of a model: requests that succeeded and failed, pictures, executions of each size."""
    found = server.get(f"/v2/models/{model}/stats")["model_stats"][0]
    seen, sizes = (
        found["inference_stats"],
        {str(row["batch_size"]): row["compute_infer"]["count"] for row in found["batch_stats"]},
    )
    return {"succeeded": seen["success"]["count"], "failed": seen["fail"]["count"], "inference_count": found["inference_count"],
            "execution_count": found["execution_count"], "executions_of_size": sizes}  # fmt: skip


def flood(server: Server, model: str, engine: Engine, asked: list[Good | Bad], clients: int) -> dict[str, Any]:
    """All requests by so many clients at once; what came back, compared afterwards."""
    seconds: list[float] = []

    def one(request: Good | Bad) -> Any:
        began = time.perf_counter()
        try:
            answer = request.ask(server.address, model)
        except Exception as error:  # counted, whatever it is
            return error
        if isinstance(request, Good):
            seconds.append(time.perf_counter() - began)
        return answer

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(one, asked))
    taken = time.perf_counter() - began
    worst, wrong, equal, told = Counter[str](), Counter[str](), 0, 0
    for request, answer in zip(asked, answers):
        if isinstance(request, Bad):
            told += request.clear(answer)
            wrong[f"{request.kind}: {answer!r:.300}"] += not request.clear(answer)
        elif isinstance(answer, Exception):
            wrong[f"{type(answer).__name__}: {answer}"] += 1
        else:
            found = differences(answer, request.expected(engine))
            worst = Counter({name: max(worst[name], value) for name, value in found.items()})
            equal += not found["labels"] and not found["masks"]
    good = sum(isinstance(request, Good) for request in asked)
    return {"clients": clients, "good": good, "good_equal": equal, "bad": len(asked) - good,
            "bad_told_clearly": told, "wrong": dict(+wrong), "worst": dict(worst),
            "seconds": round(taken, 2), "good_per_second": round(good / taken, 2),
            "latency": {f"p{p}": round(float(np.percentile(seconds, p)), 3) for p in (50, 95, 99)}}  # fmt: skip


def mixed(good: int, bad: int) -> list[Good | Bad]:
    asked: list[Good | Bad] = [*good_requests(good), *bad_requests(bad)]
    random.Random(0).shuffle(asked)
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--good", type=int, default=500)
    parser.add_argument("--bad", type=int, default=50)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--note", default="")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    from digseg_engine.runtime.machine import device_key

    busy, model = os.getloadavg()[0], options.bundle.name
    models = (model, f"{model}_encode", f"{model}_decode")
    with (
        tempfile.TemporaryDirectory(prefix="digseg-triton-") as name,
        Engine.load(options.bundle, "onnxruntime", threads=1) as engine,
    ):
        room = Path(name)
        export(options.bundle, room / "models")
        began = time.perf_counter()
        with serving(room / "models", room / "server") as server:
            ready = time.perf_counter() - began
            about, process = server.get("/v2"), server.process.pid
            together = flood(server, model, engine, mixed(options.good, options.bad), options.clients)
            stats = {each: counters(server, each) for each in models}
            alone = flood(server, model, engine, list(good_requests(min(100, options.good))), 1)
            lives = server.lives and server.process.pid == process
            restarts = server.log.read_text(errors="replace").count("is not healthy")
    packages = environment()
    asked = subprocess.run([packages / "bin" / "python", "-c", "import numpy, onnxruntime as o; print(numpy.__version__, "
                            "o.__version__)"], capture_output=True, text=True, check=True).stdout.split()  # type: ignore[operator]  # fmt: skip
    figures = {
        "command": " ".join(["python benchmarks/triton_server.py", *sys.argv[1:]]), "date": date.today().isoformat(),
        "note": options.note, "machine": {**device_key(), "system": platform.system(), "load_before": busy},
        "versions": {"tritonserver": about["version"], "numpy of the server": asked[0], "onnxruntime of the server": asked[1],
                     "numpy": version("numpy"), "onnxruntime": version("onnxruntime")},
        "model": {"name": model, "sha256": engine_digest(options.bundle)}, "ready_seconds": round(ready, 1),
        "together": together, "counters": stats, "one_client": alone, "server_lives": lives, "stubs_that_died": restarts,
    }  # fmt: skip
    shutil.rmtree(room, ignore_errors=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def engine_digest(bundle: Path) -> str:
    from digseg_engine.bundle import open_bundle

    return open_bundle(bundle).digest


if __name__ == "__main__":
    main()
