"""The server under load, on loopback: `python benchmarks/serve.py [--bundle DIR]`.

1. one client: a first question (picture encoded, one prompt), and a second one about the same encoding;
2. what a kept encoding takes of the process's memory;
3. pictures in batches against one after the other, in the engine itself: what dynamic batching could win;
4. many clients at once for minutes: each encodes a picture, asks twice about it, lets go of it, and asks about another at once;
   errors, latency, and what the server's memory grows by.
Clients and server share the machine. Writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from digseg_engine import Engine
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime.timing import in_turns, milliseconds

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "serve.json"
PICTURES = ("aerial", "cells", "crops", "shapes")
PROMPTS = ("road", "water", "building", "nucleus", "soil", "red ring", "weed", "field")
PATIENCE = 120.0  # seconds a client waits for an answer


def files(number: int) -> dict[str, Any]:
    path = ROOT / "examples" / f"{PICTURES[number % len(PICTURES)]}.png"
    return {"image": (path.name, path.read_bytes(), "image/png")}


def first_and_second(address: str, runs: int) -> dict[str, Any]:
    """Milliseconds of one client's first question, in two requests, and of its second."""
    first, second = [], []
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        for number in range(runs + 2):
            began = time.perf_counter()
            name = client.post("/v1/encode", files=files(number)).json()["id"]
            client.post("/v1/segment", json={"encoding": name, "prompts": ["water"]}).raise_for_status()
            middle = time.perf_counter()
            client.post("/v1/segment", json={"encoding": name, "prompts": ["road"]}).raise_for_status()
            if number >= 2:
                first.append(middle - began)
                second.append(time.perf_counter() - middle)
    found: dict[str, Any] = {"first": milliseconds(first), "second": milliseconds(second)}
    return {**found, "second_over_first": found["second"]["median_ms"] / found["first"]["median_ms"]}


def in_batches(engine: Engine, runs: int) -> dict[str, Any]:
    """Milliseconds of a picture, several one after the other and together."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (256, 256, 3), np.uint8) for _ in range(8)]
    rows = {}
    for count in (2, 4, 8):
        some, prompts = pictures[:count], engine.prepare(PROMPTS[:3])
        taken = in_turns({
            "alone": lambda some=some, prompts=prompts: [engine.segment(each, prompts, keep_masks=False) for each in some],
            "together": lambda some=some, prompts=prompts: engine.segment_batch(some, prompts, keep_masks=False),
        }, runs)  # fmt: skip
        ms = {name: 1000 * float(np.median(seconds)) / count for name, seconds in taken.items()}
        rows[str(count)] = {**{f"{name}_ms": value for name, value in ms.items()}, "gain": ms["alone"] / ms["together"]}
    return rows


def resident(process: int) -> float:
    """MiB of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def kept(address: str, process: int, count: int = 24) -> dict[str, float]:
    """MiB of a kept encoding: as the server counts it, and as its process grows by it."""
    with httpx.Client(base_url=address, timeout=PATIENCE) as client:
        before = resident(process)
        made = [client.post("/v1/encode", files=files(number)).json() for number in range(count)]
        grown = resident(process) - before
        for each in made:
            client.delete(f"/v1/encodings/{each['id']}")
    return {"counted_mib": made[0]["bytes"] / 2**20, "process_mib": grown / count}


async def load(address: str, process: int, clients: int, seconds: float) -> dict[str, Any]:
    """All clients at once, each with its requests one after the other."""
    latency: dict[str, list[float]] = {"encode": [], "ask again": [], "segment": []}
    wrong: Counter[str] = Counter()
    memory: list[tuple[float, float]] = []
    began = time.perf_counter()

    def over() -> bool:
        return time.perf_counter() - began > seconds

    async def ask(client: httpx.AsyncClient, kind: str, path: str, **request: Any) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            answer = await client.post(path, **request)
        except httpx.HTTPError as error:
            wrong[type(error).__name__] += 1
            return {}
        latency[kind].append(time.perf_counter() - start)
        if answer.status_code != 200:
            wrong[str(answer.status_code)] += 1
            return {}
        body: dict[str, Any] = answer.json()
        return body

    async def client_of(number: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client:
            while not over():
                made = await ask(client, "encode", "/v1/encode", files=files(number))
                for again in range(2):
                    question = {"encoding": made.get("id", ""), "prompts": [PROMPTS[(number + again) % len(PROMPTS)]]}
                    await ask(client, "ask again", "/v1/segment", json=question)
                if made:
                    await client.delete(f"/v1/encodings/{made['id']}")
                question = {"prompts": list(PROMPTS[:3])}
                await ask(client, "segment", "/v1/segment", files=files(number + 1), data=question)

    async def watch() -> None:
        while not over():
            memory.append((time.perf_counter() - began, resident(process)))
            await asyncio.sleep(0.5)

    await asyncio.gather(watch(), *(client_of(number) for number in range(clients)))
    everything = [value for values in latency.values() for value in values]
    half = [mib for at, mib in memory if at > seconds / 2]
    return {
        "clients": clients, "seconds": seconds, "requests": len(everything), "errors": dict(wrong),
        "requests_per_second": len(everything) / (time.perf_counter() - began),
        "latency_ms": {kind: {f"p{share}": 1000 * float(np.percentile(values, share)) for share in (50, 99)}
                       for kind, values in {**latency, "all": everything}.items()},
        "memory_mib": {"start": memory[0][1], "halfway": half[0], "end": memory[-1][1],
                       "most": max(mib for _, mib in memory), "growth_from_halfway": memory[-1][1] - half[0]},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    from digseg_engine.runtime.machine import device_key

    busy = os.getloadavg()[0]
    with Engine.load(options.bundle, "onnxruntime", threads=options.threads) as engine:
        model = {"name": options.bundle.name, "sha256": engine.bundle.digest, "backend": engine.backend.detail}
        batches = in_batches(engine, options.runs)
    words = [
        "--threads",
        str(options.threads),
        "--backend",
        "onnxruntime",
        "--keep",
        str(2 * options.clients),
        "--port",
        "0",
    ]
    command = [sys.executable, "-m", "digseg_engine", "serve", str(options.bundle), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            address = process.stdout.readline().strip()  # type: ignore[union-attr]
            alone = first_and_second(address, options.runs)
            held = kept(address, process.pid)
            loaded = asyncio.run(load(address, process.pid, options.clients, options.seconds))
        finally:
            process.terminate()
    figures = {
        "command": " ".join(["python benchmarks/serve.py", *sys.argv[1:]]),
        "date": date.today().isoformat(), "note": options.note,
        "machine": {**device_key(), "system": platform.system(), "load_before": busy},
        "versions": {name: version(name) for name in ("onnxruntime", "fastapi", "uvicorn", "numpy", "httpx")},
        "model": model, "server": " ".join(["digseg serve", *words]),
        "one_client": alone, "kept": held, "batches": batches, "load": loaded, "exit_code": process.returncode,
    }  # fmt: skip
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
