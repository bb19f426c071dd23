"""A folder shared among Ray's actors, killed at random moments: `python benchmarks/cluster.py [--pictures N] [--kills N]`.

1. one process segments the folder; 2. two actors do, and one of them is killed (SIGKILL) at each of so many random moments: every
picture is there, bit for bit that of one process; the kernel (inotify) counts how often each record was put in place; 3. the same
again with --skip-existing: nothing is touched; 4. three node processes on this machine share it. Writes JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime import cluster

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "cluster.json"
EXAMPLES = ("aerial", "cells", "crops", "shapes")
MOVED_TO = 0x80


def paint(folder: Path, count: int, side: int) -> None:
    """Different pieces of the example pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    sources = [np.asarray(Image.open(ROOT / "examples" / f"{name}.png").convert("RGB")) for name in EXAMPLES]
    for number in range(count):
        whole = sources[number % len(sources)]
        top, left = (int(rng.integers(0, length - side + 1)) for length in whole.shape[:2])
        Image.fromarray(whole[top : top + side, left : left + side]).save(folder / f"{number:04}.png")


def arguments(output: str, size: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "digseg_engine", "segment", "in", "-p", "road", "-p", "red ring", "--backend", "onnxruntime",
            "--threads", "1", "-b", str(SHIPPED_BUNDLE), "--imgsz", str(size), "-o", output, *more]  # fmt: skip


def run(words: list[str], room: Path) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(words, cwd=room, capture_output=True, text=True, check=False)
    facts = {
        "exit_code": done.returncode,
        "lines": len(done.stdout.splitlines()),
        "seconds": time.perf_counter() - began,
    }
    return {**facts, "said": done.stderr.splitlines()[-3:]}


def same(one: Path, other: Path) -> dict[str, int]:
    """How many files of two folders are equal, of records all but the seconds."""
    equal = different = 0
    for path in one.iterdir():
        bodies = [file.read_bytes() if file.exists() else b"" for file in (path, other / path.name)]
        if path.suffix == ".json" and bodies[1]:
            bodies = [{**json.loads(body), "seconds": None} for body in bodies]
        equal, different = (equal + 1, different) if bodies[0] == bodies[1] else (equal, different + 1)
    return {"equal": equal, "different": different, "more": len(list(other.iterdir())) - equal - different}


class Watch(threading.Thread):
    """Counts, by the kernel's own word, what is renamed into a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.inotify_init()
        if libc.inotify_add_watch(self.handle, os.fsencode(folder), MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {folder}")
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        while body := os.read(self.handle, 1 << 20):
            place = 0
            while place < len(body):
                (length,) = struct.unpack_from("I", body, place + 12)
                self.counts[body[place + 16 : place + 16 + length].rstrip(b"\0").decode()] += 1
                place += 16 + length


def actors_of(process: int) -> list[int]:
    """Processes of ours that are actors and descend from one."""
    parents, found = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            parents[int(entry.name)] = int(re.findall(r"PPid:\s+(\d+)", (entry / "status").read_text())[0])
        except (OSError, IndexError):
            continue
        if words.startswith(b"ray::Segmenter"):
            found.append(int(entry.name))

    def descends(one: int) -> bool:
        while one > 1 and one != process:
            one = parents.get(one, 0)
        return one == process

    return [one for one in found if descends(one)]


def with_kills(words: list[str], room: Path, kills: int, pictures: int, seed: int = 0) -> dict[str, Any]:
    """The command, and an actor of it killed each time that another of `kills` random numbers of pictures is done."""
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(1, pictures * 9 // 10), kills))
    out = room / words[words.index("-o") + 1]
    out.mkdir()
    watch = Watch(out)
    watch.start()
    began = time.perf_counter()
    with open(room / "said.txt", "w") as said:
        process = subprocess.Popen(words, cwd=room, stdout=said, stderr=said)
        killed: list[dict[str, Any]] = []
        while process.poll() is None:
            done = sum(1 for name in list(watch.counts) if name.endswith(".json"))
            alive = actors_of(process.pid)
            if len(killed) < kills and done >= moments[len(killed)] and alive:
                time.sleep(rng.random() / 2)
                victim = rng.choice(alive)
                try:
                    os.kill(victim, signal.SIGKILL)
                    killed.append({"after_pictures": done, "process": victim})
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
    text = (room / "said.txt").read_text().splitlines()
    named = Counter(line.split(": ")[0] for line in text if line.startswith("in/"))
    records = {name: n for name, n in watch.counts.items() if name.endswith(".json")}
    others = {name: n for name, n in watch.counts.items() if not name.endswith(".json")}
    return {"exit_code": process.returncode, "seconds": time.perf_counter() - began, "kills": killed, "lines": len(named),
            "lines_twice": sum(n > 1 for n in named.values()), "records": len(records),
            "records_written_twice": sum(n > 1 for n in records.values()),
            "files_written_twice_for_a_killed_picture": sum(n > 1 for n in others.values()),
            "said": [line for line in text if line.startswith("digseg:")][-6:]}  # fmt: skip


def three_nodes(room: Path, size: int) -> dict[str, Any]:
    os.environ.update(cluster.SAID | cluster.LOOPBACK)
    from ray.cluster_utils import Cluster

    share = {"num_cpus": 1, "object_store_memory": cluster.STORE}
    nodes = Cluster(initialize_head=True, head_node_args={**share, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(**share)
        done = run(arguments("nodes", size, "--ray", nodes.address, "--verbose"), room)
    finally:
        nodes.shutdown()
    last = done["said"][-1]
    by_node: Counter[str] = Counter()
    for node, count in re.findall(r"(\w{8})/\d+ (\d+)", last):
        by_node[node] += int(count)
    return {**done, "pictures_by_node": dict(by_node)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    body: dict[str, Any] = {
        "about": {"date": date.today().isoformat(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
                  "machine": platform.machine(), "python": platform.python_version(), "ray": version("ray"),
                  "onnxruntime": version("onnxruntime"), **vars(options)},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="digseg-bench-") as folder:
        room, size = Path(folder), options.side
        paint(room / "in", options.pictures, size)
        body["serial"] = run(arguments("serial", size), room)
        words = arguments("killed", size, "--ray", "local", "--actors", "2", "--verbose")
        body["killed"] = with_kills(words, room, options.kills, options.pictures)
        body["killed_against_serial"] = same(room / "serial", room / "killed")
        before = {path: path.stat().st_mtime_ns for path in (room / "killed").iterdir()}
        body["again"] = run([*words, "--skip-existing"], room)
        body["again"]["touched"] = sum(path.stat().st_mtime_ns != time for path, time in before.items())
        print(json.dumps(body, indent=2), flush=True)
        body["three_nodes"] = three_nodes(room, size)
        body["three_nodes_against_serial"] = same(room / "serial", room / "nodes")
    RESULT.write_text(json.dumps(body, indent=2) + "\n")
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
