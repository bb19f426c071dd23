"""Damage what Python readers are given, in seeded ways, and look at what comes of it: `python scripts/fuzz.py [--json FILE]`.

    manifests    manifest.json of a bundle whose other files are sound, its JSON changed in meaning and in bytes
    headers      safetensors files, header and length changed, as a golden sample whose hash is true
    graphs       ONNX graphs that are no longer what the manifest has the hash of: all of them must be refused
    unhashed     ONNX graphs whose maker made the hashes true: checked, opened and run, or refused
    pictures     picture files of every format (scripts/fuzz_pictures.py), and pictures that say they are huge

Only an answer or an error of ours (DigsegError) in one line may come back. Work is done in child processes that have a limit of
memory and of processor time, so that a crash, a hang and memory without bounds are outcomes too: the input is kept and named.
The same seed gives the same inputs. A slice runs with the tests (tests/engine/test_fuzz_readers.py). Exit code 1 for anything
else.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import platform
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import fuzz_pictures  # noqa: E402

from digseg_engine.bundle import MANIFEST, Bundle, finish, open_bundle  # noqa: E402
from digseg_engine.errors import DigsegError, InputError  # noqa: E402
from digseg_engine.files import write_json  # noqa: E402
from digseg_engine.named import SHIPPED_BUNDLE  # noqa: E402

COUNTS = {"manifests": 20_000, "headers": 20_000, "graphs": 30_000, "unhashed": 30_000, "pictures": 32_000}
MEMORY, SECONDS = (
    3 << 30,
    20,
)  # of a child: bytes of addresses beyond what it begins with, and processor seconds of one input
CHILD = 500  # inputs that one child reads
ODD = (
    None,
    True,
    -1,
    0,
    1,
    1 << 31,
    1 << 63,
    1 << 80,
    -0.0,
    1e308,
    "",
    "x",
    "../x",
    "a" * 5000,
    "\x1b[2J\n",
    "\ud800",
    [],
    {},
    [[]],
    {"min": 1},
    "dynamic",
)
Case = Callable[[random.Random, Path], str]


def damaged_json(body: Any, rng: random.Random) -> bytes:
    """A document with one to a few of its values changed, moved, doubled or dropped, and now and then its bytes too."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, path = body, []
        while isinstance(at, (dict, list)) and at and (not path or rng.random() < 0.7):
            keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = rng.choice(keys)
            path.append((at, key))
            at = at[key]
        if not path:
            continue
        holder, key = path[-1]
        choice = rng.randrange(5)
        if choice == 0:
            del holder[key]
        elif choice == 1:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif choice == 2 and isinstance(holder, dict):
            holder[rng.choice(("x", "__proto__", "files", "../x", ".x", "a" * 300))] = holder[key]
        elif choice == 3 and isinstance(holder[key], (int, float)):
            holder[key] = rng.choice((-1, 0, 1, 7, 1 << 20, 1 << 40)) * (holder[key] or 1)
        else:
            holder[key] = [holder[key]] * rng.choice((1, 2, 100))
    text = (
        json.dumps(body).encode("utf-8", "surrogatepass")
        if rng.random() < 0.9
        else json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    return fuzz_pictures.damaged(text, rng) if rng.random() < 0.3 else text


def said(error: BaseException) -> str:
    """ "refused" for an error of ours in one line that can be printed, else what it is."""
    if not isinstance(error, DigsegError):
        return f"{type(error).__name__}: {str(error)[:200]}"
    text = str(error)
    if "\n" in text or len(text) > 2000 or not text:
        return f"an error that is no line of text: {text[:200]!r}"
    return "refused"


def manifests(room: Path) -> Case:
    bundle = room / "bundle"
    shutil.copytree(SHIPPED_BUNDLE, bundle)
    body = json.loads((bundle / MANIFEST).read_text())
    for name in (
        "image_encoder.data",
        "text_encoder.data",
        "golden.safetensors",
        "image_encoder.onnx",
    ):  # quicker to hash
        (bundle / name).write_bytes(b"small")
    finish(bundle, {key: value for key, value in body.items() if key != "files"})
    body = json.loads((bundle / MANIFEST).read_text())

    def case(rng: random.Random, path: Path) -> str:
        text = damaged_json(body, rng)
        path.write_bytes(text)
        (bundle / MANIFEST).write_bytes(text)
        opened = open_bundle(bundle)
        _ = opened.vocabulary, opened.graphs, opened.digest, repr(opened)
        return "read"

    return case


def headers(room: Path) -> Case:
    from safetensors.numpy import save

    from digseg_engine.runtime.source import open_source

    folder = room / "headers"
    shutil.copytree(SHIPPED_BUNDLE, folder)
    source = open_source(folder)
    arrays = {
        "image": np.zeros((1, 3, 32, 32), np.float32),
        "token_ids": np.zeros((2, 8), np.int64),
        "token_mask": np.ones((2, 8), bool),
        "logits": np.ones((1, 2, 8, 8), np.float32),
        "presence": np.zeros((1, 2), np.float32),
    }
    whole = save(arrays, {"prompts": '["road", "water"]'})
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    manifest = source.need_bundle("fuzzing").manifest

    def case(rng: random.Random, path: Path) -> str:
        text = damaged_json(header, rng)
        told = (
            len(text)
            if rng.random() < 0.8
            else rng.choice((0, 1, len(text) - 1, len(text) + 1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1))
        )
        body = struct.pack("<Q", told) + text + whole[8 + length :][: rng.choice((None, None, None, 0, 7))]
        path.write_bytes(body)
        (folder / "golden.safetensors").write_bytes(body)
        listed = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        bundle = Bundle(folder, {**manifest, "files": {**manifest["files"], "golden.safetensors": listed}})
        _ = replace(source, bundle=bundle).golden
        return "read"

    return case


def graphs(room: Path) -> Case:
    """The graph is exchanged and its hash is not: whatever it says, it is refused before a parser sees it."""
    bundle = room / "graphs"
    small_bundle(bundle)
    whole = (bundle / "mask_decoder.onnx").read_bytes()

    def case(rng: random.Random, path: Path) -> str:
        body = whole
        while body == whole:  # a byte may be exchanged for its like
            body = fuzz_pictures.damaged(whole, rng)
        path.write_bytes(body)
        (bundle / "mask_decoder.onnx").write_bytes(body)
        open_bundle(bundle)
        return "taken though its hash is another"

    return case


def unhashed(room: Path) -> Case:
    """A graph whose hash its maker made true: looked into, and only what passes is opened and asked."""
    import onnxruntime

    from digseg_engine.runtime.backends import failing_as
    from digseg_engine.runtime.backends.ort_backend import create_session, opened_as_hashed, session_options

    onnxruntime.set_default_logger_severity(4)
    folder, names = room / "unhashed", ("mask_decoder.fp32.onnx", "presence.fp32.onnx")
    shutil.copytree(SHIPPED_BUNDLE, folder)
    manifest = open_bundle(folder).manifest
    whole = {name: (folder / name).read_bytes() for name in names}

    def opened(name: str) -> Any:
        body = (folder / name).read_bytes()
        listed = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        bundle = Bundle(folder, {**manifest, "files": {**manifest["files"], name: listed}})
        options = session_options(onnxruntime, 1)
        return opened_as_hashed(
            bundle, name, options, True, lambda model: create_session(onnxruntime, model, options, name=name)
        )

    def asked(session: Any) -> dict[str, Any]:
        """Zeros for every input of a sound graph, at small sizes."""
        kinds = {
            "tensor(float)": np.float32,
            "tensor(float16)": np.float16,
            "tensor(bool)": np.bool_,
            "tensor(int64)": np.int64,
        }
        sizes = {"B": 1, "K": 2, "L": 8}
        return {
            each.name: np.zeros(
                [side if isinstance(side, int) else sizes.get(side, 4) for side in each.shape], kinds[each.type]
            )
            for each in session.get_inputs()
        }

    feeds = {name: asked(opened(name)) for name in names}
    for name in names:
        opened(name).run(None, feeds[name])

    def case(rng: random.Random, path: Path) -> str:
        name = rng.choice(names)
        changed = fuzz_pictures.damaged(whole[name], rng)
        path.write_bytes(changed)
        (folder / name).write_bytes(changed)
        session = opened(name)
        with failing_as("onnxruntime", "on small pictures"):
            session.run(None, feeds[name])
        return "read"

    return case


def small_bundle(folder: Path) -> None:
    """A bundle whose graph is small, so that most damages change what it says."""
    shutil.copytree(SHIPPED_BUNDLE, folder)
    body = json.loads((folder / MANIFEST).read_text())
    for path in folder.iterdir():
        if path.name not in (MANIFEST, "mask_decoder.onnx", "mask_decoder.data", "presence.onnx", "presence.data"):
            path.write_bytes(b"small")
    finish(folder, {key: value for key, value in body.items() if key != "files"})


def pictures(room: Path) -> Case:
    whole = fuzz_pictures.whole_files()
    names = sorted(whole)

    def case(rng: random.Random, path: Path) -> str:
        name = rng.choice(names)
        file = path.with_suffix(Path(name).suffix)
        file.write_bytes(fuzz_pictures.damaged(whole[name], rng))
        found = fuzz_pictures.outcome(file)
        if found in ("read", "refused"):
            file.unlink()
        return found

    return case


KINDS: dict[str, Callable[[Path], Case]] = {
    "manifests": manifests,
    "headers": headers,
    "graphs": graphs,
    "unhashed": unhashed,
    "pictures": pictures,
}


def run(kind: str, count: int, seed: int, kept: Path) -> dict[str, Any]:
    """`count` inputs of a kind in children; outcomes, and the names of the inputs that are kept because of theirs."""
    outcomes: Counter[str] = Counter()
    faults: dict[str, str] = {}
    peak, began, at = 0, time.monotonic(), 0
    while at < count:
        until = min(count, at + CHILD)
        done, most, end = child(kind, at, until, seed, kept)
        peak = max(peak, most)
        for number, found in done:
            outcomes[found] += 1
            if found not in ("read", "refused"):
                faults[f"{kind}-{number}"] = found
        at += len(done)
        if at < until:  # the child died over this one
            outcomes[end] += 1
            faults[f"{kind}-{at}"] = end
            at += 1
    return {
        "inputs": count,
        "outcomes": dict(outcomes),
        "faults": faults,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mib": peak >> 10,
    }


def child(kind: str, start: int, until: int, seed: int, kept: Path) -> tuple[list[tuple[int, str]], int, str]:
    """Inputs from `start` in a process of its own: what came of each, its peak of memory (KiB), and how it ended."""
    reader, writer = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(reader)
        with os.fdopen(writer, "w") as out, suppress(BaseException):
            for at, found in outcomes_of(kind, range(start, until), seed, kept):
                out.write(json.dumps([at, found]) + "\n")
                out.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        done = [tuple(json.loads(line)) for line in lines if line.endswith("\n")]
    _, status, used = os.wait4(number, 0)
    code = os.waitstatus_to_exitcode(status)
    ends = {-signal.SIGXCPU: f"no end in {SECONDS} s", 0: "it left without a word"}
    return (
        done,
        used.ru_maxrss,
        ends.get(code, f"the process died of {signal.Signals(-code).name if code < 0 else code}"),
    )


def outcomes_of(kind: str, numbers: range, seed: int, kept: Path) -> Iterator[tuple[int, str]]:
    """What comes of each input; those that are neither read nor refused stay in `kept`."""
    room = Path(tempfile.mkdtemp(prefix="digseg-fuzz-"))
    try:
        case = KINDS[kind](room)
        held = (
            int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if Path("/proc/self/statm").exists()
            else 0
        )
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        for at in numbers:
            spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + SECONDS, resource.RLIM_INFINITY))
            path = kept / f"{kind}-{at}"
            try:
                found = case(random.Random(f"{kind}-{seed}-{at}"), path)
            except (DigsegError, Exception, MemoryError) as error:
                found = said(error)
            if found in ("read", "refused"):
                path.unlink(missing_ok=True)
            yield at, found
    finally:
        shutil.rmtree(room, ignore_errors=True)


def bombs(folder: Path) -> dict[str, Any]:
    """Twelve small files that say, or are, 64 to 400 million pixels: refused within the memory of a small picture."""
    import io

    from PIL import Image

    from digseg_engine.images import read_image

    made = {}
    Image.MAX_IMAGE_PIXELS = None
    for side in (8001, 12_000, 16_000, 20_000):
        for name, kind, options in (
            ("png", "PNG", {}),
            ("tif", "TIFF", {"compression": "tiff_adobe_deflate"}),
            ("bmp.png", "PNG", {}),
        ):
            body = io.BytesIO()
            Image.new("1" if name == "bmp.png" else "L", (side, side)).save(body, kind, **options)
            made[f"{side}.{name}"] = body.getvalue()
    outcomes: Counter[str] = Counter()
    faults, peak, began = {}, 0, time.monotonic()
    for name, body in made.items():
        path = folder / name
        path.write_bytes(body)
        done = os.fork()
        if done == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            code = 1
            with suppress(BaseException):
                try:
                    read_image(path)
                except InputError:
                    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                    code = 0 if grown < 300 << 10 else 2
            os._exit(code)
        _, status, used = os.wait4(done, 0)
        code = os.waitstatus_to_exitcode(status)
        found = {0: "refused", 1: "read", 2: "refused after 300 MiB"}.get(code, f"died of {code}")
        outcomes[found] += 1
        peak = max(peak, used.ru_maxrss)
        if found != "refused":
            faults[name] = found
        path.unlink()
    return {
        "inputs": len(made),
        "bytes": {name: len(body) for name, body in made.items()},
        "outcomes": dict(outcomes),
        "faults": faults,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join((*COUNTS, "bombs")), help="kinds, with commas")
    parser.add_argument(
        "--count", type=int, help="inputs of each kind (default: " + ", ".join(f"{n} {k}" for k, n in COUNTS.items())
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="where inputs are kept that are neither read nor refused")
    parser.add_argument("--json", type=Path, help="also write the figures")
    a = parser.parse_args()
    os.environ.setdefault("DIGSEG_MAX_PIXELS", str(fuzz_pictures.MOST_PIXELS))
    fuzz_pictures.quiet_readers()
    kept = a.kept or Path(tempfile.mkdtemp(prefix="digseg-fuzz-kept-"))
    kept.mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {
        "command": " ".join(["python", "scripts/fuzz.py", *sys.argv[1:]]),
        "date": str(date.today()),
        "seed": a.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "limits": {"address_space_mib": MEMORY >> 20, "processor_seconds": SECONDS},
        "kinds": {},
    }
    for kind in a.only.split(","):
        if kind != "bombs" and kind not in KINDS:
            raise SystemExit(f"no kind {kind!r}; expected some of {', '.join(KINDS)}, bombs")
        if kind == "bombs":
            os.environ.pop("DIGSEG_MAX_PIXELS", None)
        found = bombs(kept) if kind == "bombs" else run(kind, a.count or COUNTS[kind], a.seed, kept)
        body["kinds"][kind] = found
        print(f"{kind:10} {found['inputs']:6} inputs in {found['seconds']:7.1f} s: {found['outcomes']}", flush=True)
        for name, fault in list(found["faults"].items())[:10]:
            print(f"  {name}: {fault}")
        if a.json:
            write_json(a.json, body)
    faults = sum(len(found["faults"]) for found in body["kinds"].values())
    print(f"{faults} faults" + (f", kept in {kept}" if faults else ""))
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
