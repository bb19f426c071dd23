"""Our bundle beside what people would otherwise use, in one run: `python -m benchmarks.speed_peers [-o JSON]`.

Every peer is a process of its own in an environment of its own (`benchmarks/peers/`), with the same threads and pixels; all of a
size are open together and asked in turns, round by round, so that what else the machine does hits all alike. A ratio is the
median over rounds of a peer's time against ours in the same round. A first question encodes picture and prompts, a later one
finds both encoded; from pixels and token ids to logits (of ours: tokenising included). One thread is timed by its own processor
time, which other work does not lengthen. Rows that the JSON holds are left as they are (--fresh measures all anew), and what is
missing is measured with ours beside it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.peers import environments, models, yolo
from benchmarks.peers.registry import OURS, PEERS
from digseg_engine.files import replacing
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime.machine import device_key, library_versions
from digseg_engine.runtime.timing import milliseconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FORMAT = "digseg.speed-peers/1"
QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
FEW, SECONDS = 3, 8.0  # a row that has taken so long after so many rounds is left at that
Key = tuple[str, int, int, str]  # peer, size, prompts, question


def surroundings(threads: int) -> dict[str, str]:
    """What every process runs in."""
    counted = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "export", "triton_kernels"))
    places = {
        "YOLO_CONFIG_DIR": str(environments.home()),
        "TORCHINDUCTOR_CACHE_DIR": str(environments.home() / "inductor"),
    }
    return {**os.environ, **QUIET, **counted, **places, "PYTHONPATH": paths}


def interpreter(name: str) -> str:
    """The Python that a peer runs in."""
    environment = PEERS[name].environment
    return str(environments.python_of(environment)) if environment else sys.executable


def prepared(name: str, size: int, prompts: list[int]) -> tuple[Path, dict[str, Any]]:
    """The folder of a peer at a size, and its counts; made where its builder or the prompts have changed. Raises RuntimeError."""
    peer = PEERS[name]
    source = Path(models.__file__ if peer.asks_again else yolo.__file__).read_bytes()
    stamp = hashlib.sha256(source + repr((size, prompts)).encode()).hexdigest()[:12]
    folder = environments.home() / "models" / f"{peer.model}-{size}-{stamp}"
    about = folder / "about.json"
    if not about.is_file():
        print(f"preparing {name} at {size} px", file=sys.stderr, flush=True)
        command = [
            interpreter(name),
            "-m",
            "benchmarks.peers.prepare",
            name,
            str(size),
            str(folder),
            *map(str, prompts),
        ]
        done = subprocess.run(command, env=surroundings(os.cpu_count() or 1), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no word"]
            raise RuntimeError(f"preparing ended with {done.returncode}: {last[0]}"[:500])
    return folder, json.loads(about.read_text(encoding="utf-8"))


class Worker:
    """A peer's process. Raises RuntimeError for what it could not do."""

    def __init__(self, name: str, size: int, folder: Path, bundle: Path, threads: int) -> None:
        command = [
            interpreter(name),
            "-m",
            "benchmarks.peers.worker",
            name,
            str(size),
            str(folder),
            str(bundle),
            str(threads),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env=surroundings(threads),
        )  # fmt: skip
        try:
            self.opened = self._heard()
        except RuntimeError:
            self.close()
            raise

    def ask(self, **question: Any) -> dict[str, Any]:
        try:
            self.process.stdin.write(json.dumps(question) + "\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise RuntimeError(f"its process ended: {error}") from error
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"its process ended with {self.process.wait()}")
        said: dict[str, Any] = json.loads(line)
        if "failed" in said:
            raise RuntimeError(said["failed"])
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def missing(rows: dict[Key, Any], names: list[str], size: int, prompts: list[int]) -> list[Key]:
    """What a size still lacks."""
    wanted = ((name, size, k, question) for k in prompts for name in names for question in questions(name))
    return [key for key in wanted if key not in rows]


def questions(name: str) -> tuple[str, ...]:
    """What a peer is asked: `whole` is a first question of ours from a picture to full-size masks and label map."""
    if PEERS[name].model == "student":
        return "first", "later", "whole"
    return ("first", "later") if PEERS[name].asks_again else ("first",)


def rows_of(workers: dict[str, Worker], keys: list[Key], rounds: int) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Rows of one size and number of prompts: the peers take turns, another one begins each round."""
    size, prompts = keys[0][1], keys[0][2]
    beside = [(OURS, size, prompts, question) for question in questions(OURS)]
    every = list(dict.fromkeys([*beside, *keys]))
    taken: dict[Key, list[float]] = {key: [] for key in every}
    failed: dict[Key, str] = {}
    for turn in range(rounds):
        start = turn % len(every)
        for key in every[start:] + every[:start]:
            if key in failed or (key not in beside and turn >= FEW and sum(taken[key]) > 1000 * SECONDS):
                continue
            try:
                answer = workers[key[0]].ask(ask=key[3], prompts=prompts, warm_up=turn == 0)
                taken[key].append(answer["ms"])
            except RuntimeError as error:
                failed[key] = str(error)
    for key in keys:
        yield key, {"reason": failed[key]} if key in failed else row(taken[key], taken[OURS, size, prompts, key[3]])


def row(taken: list[float], ours: list[float]) -> dict[str, Any]:
    """Figures of one row from its milliseconds and ours in the same rounds."""
    ratios = [one / other for one, other in zip(taken, ours)]
    return {
        **milliseconds([one / 1000 for one in taken]), "over_ours": statistics.median(ratios), "rounds": len(taken),
        "ms": [round(one, 3) for one in taken], "ours_ms": [round(one, 3) for one in ours],
    }  # fmt: skip


def measure_size(figures: dict[str, Any], size: int, names: list[str], options: argparse.Namespace) -> None:
    """All that one size lacks, saved after every number of prompts."""
    rows = {(r["peer"], r["size"], r["prompts"], r["question"]): r for r in figures["rows"]}
    lacking = missing(rows, names, size, options.prompts)
    if not lacking:
        return
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in dict.fromkeys([OURS, *(key[0] for key in lacking)]):
            about = figures["peers"].setdefault(name, {}).setdefault("sizes", {}).setdefault(str(size), {})
            try:
                folder, counts = prepared(name, size, options.prompts)
                workers[name] = Worker(name, size, folder, options.bundle, options.threads)
                stack.callback(workers[name].close)
                about.clear()
                about.update(**counts, **workers[name].opened)
            except RuntimeError as error:
                about["reason"] = str(error)
                print(f"{name} at {size} px: {error}", file=sys.stderr, flush=True)
        for k in options.prompts:
            keys = [key for key in lacking if key[2] == k and key[0] in workers]
            for key, found in rows_of(workers, keys, options.rounds) if keys and OURS in workers else ():
                figures["rows"].append(dict(zip(("peer", "size", "prompts", "question"), key)) | found)
            save(figures, options.output)
        for name, worker in workers.items():
            try:
                figures["peers"][name]["sizes"][str(size)].update(worker.ask(ask="peak"))
            except RuntimeError:
                continue  # a process that ended has said so in its rows
        save(figures, options.output)


def save(figures: dict[str, Any], path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """The figures so far, or the head of new ones."""
    if options.output.is_file() and not options.fresh:
        found: dict[str, Any] = json.loads(options.output.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise SystemExit(
                f"{options.output}: format {found.get('format')!r}, expected {FORMAT!r}; name another file"
            )
        return found
    return {
        "format": FORMAT, "runs": [],
        "machine": {**device_key(), "system": platform.system(), "python": platform.python_version(),
},
        "versions": library_versions(), "environments": {}, "threads": options.threads,
        "clock": "processor time of one thread" if options.threads == 1 else "time on the wall", "rounds": options.rounds,
        "bundle": options.bundle.name, "peers": {}, "rows": [],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "speed-peers.json")
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, metavar="NAME")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 352, 640])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8, 20])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--fresh", action="store_true", help="measure also what the JSON holds")
    options = parser.parse_args()
    options.output, options.bundle = options.output.absolute(), options.bundle.absolute()
    figures = begun(options)
    figures["runs"].append({
        "command": shlex.join(["python", "-m", "benchmarks.speed_peers", *sys.argv[1:]]), "note": options.note,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "load": list(os.getloadavg()),
    })  # fmt: skip
    for name in dict.fromkeys(PEERS[peer].environment for peer in options.peers):
        if name:
            found = environments.make(name)
            wanted = (*environments.ENVIRONMENTS[name].packages, "ultralytics")
            figures["environments"][name] = {each: found[each] for each in wanted if each in found}
    for name in options.peers:
        peer = PEERS[name]
        figures["peers"].setdefault(name, {}).update(
            title=peer.title, weights=peer.weights, note=peer.note, environment=peer.environment, run=peer.run
        )
    figures["peers"] = {name: figures["peers"][name] for name in PEERS if name in figures["peers"]}
    for size in options.sizes:
        names = [name for name in options.peers if size in PEERS[name].sizes]
        if names:
            measure_size(figures, size, names, options)
    save(figures, options.output)
    from benchmarks.speed_chart import draw, picture_of

    draw(figures, picture_of(options.output))


if __name__ == "__main__":
    main()
