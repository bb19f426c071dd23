"""The page without a server, in headless Chromium: `python benchmarks/web.py --web-runtime node_modules/onnxruntime-web`.

1. from the address to a model that was right on its golden sample;
2. a first question (picture decoded and encoded, one prompt, its mask), and a second one about the same picture, as the page asks
   its worker; between two runs Python answers the same with one thread, on the same machine;
3. masks against Python's.
Needs playwright and Chromium; without --web-runtime npm fetches the runtime. Writes JSON.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine import Engine
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime.machine import device_key
from digseg_engine.runtime.rle import decode
from digseg_engine.runtime.timing import milliseconds
from digseg_export.web import SiteBuilder

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "web.json"
PICTURES = {
    "aerial": ("water", "road"),
    "cells": ("nucleus", "cell"),
    "crops": ("soil", "crop row"),
    "shapes": ("red ring", "green ring"),
}
WARM_UP = 2
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
ASK = """async ([text, name, prompts]) => {
  const api = await import("./api.js"), bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const file = new File([bytes], name, { type: "image/png" }), times = [performance.now()], masks = [];
  const { id } = await api.encode(file, name);
  for (const prompt of prompts) {
    masks.push((await api.segment(id, [prompt])).masks[0]);
    times.push(performance.now());
  }
  await api.forget(id);
  return { seconds: times.slice(1).map((time, i) => (time - times[i]) / 1000), masks };
}"""
MODEL = "import('./api.js').then((api) => api.models()).then((found) => found.models[0])"


@contextmanager
def served(folder: Path, isolated: bool) -> Iterator[str]:
    """A folder behind Python's server of static files: its address. isolated: with the headers that allow threads."""

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in ISOLATED.items() if isolated else ():
                self.send_header(name, value)
            super().end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def iou(mask: dict[str, Any], wanted: Any) -> float:
    found = np.zeros(wanted.shape, bool) if mask["rle"] is None else decode(mask["rle"])
    either = int((found | wanted).sum())
    return 1.0 if not either else float((found & wanted).sum() / either)


def measure(page: Any, engine: Engine, runs: int) -> dict[str, Any]:
    """Browser and Python in turns, one picture after the other."""
    rows: dict[str, dict[str, list[float]]] = {who: {"first": [], "second": []} for who in ("browser", "python")}
    worst = 1.0
    for number in range(runs + WARM_UP):
        name, prompts = list(PICTURES.items())[number % len(PICTURES)]
        path = ROOT / "examples" / f"{name}.png"
        told = page.evaluate(ASK, [base64.b64encode(path.read_bytes()).decode(), path.name, list(prompts)])
        began = time.perf_counter()
        encoded = engine.encode(path)
        ours = [engine.segment(encoded, prompts[:1])]
        middle = time.perf_counter()
        ours.append(engine.segment(encoded, prompts[1:]))
        taken = middle - began, time.perf_counter() - middle
        worst = min(worst, *(iou(mask, result.mask(0)) for mask, result in zip(told["masks"], ours, strict=True)))
        if number < WARM_UP:
            continue
        for who, seconds in (("browser", told["seconds"]), ("python", taken)):
            rows[who]["first"].append(seconds[0])
            rows[who]["second"].append(seconds[1])
    found: dict[str, Any] = {
        who: {which: milliseconds(times) for which, times in each.items()} for who, each in rows.items()
    }
    for each in found.values():
        each["second_over_first"] = each["second"]["median_ms"] / each["first"]["median_ms"]
    ratio = found["browser"]["first"]["median_ms"] / found["python"]["first"]["median_ms"]
    return {**found, "browser_over_python": ratio, "worst_iou": worst, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED_BUNDLE)
    parser.add_argument("--web-runtime", type=Path)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--isolated", action="store_true", help="with the headers that allow threads")
    parser.add_argument("--note", default="")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as room, Engine.load(options.bundle, "onnxruntime", threads=1) as engine:
        site = SiteBuilder(options.bundle, Path(room) / "site", options.web_runtime).run(lambda step: None)
        with served(site.folder, options.isolated) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            began = time.perf_counter()
            page.goto(address)
            model = page.evaluate(MODEL)
            start = time.perf_counter() - began
            figures = {
                "command": " ".join(["python benchmarks/web.py", *sys.argv[1:]]), "date": date.today().isoformat(),
                "note": options.note, "machine": {**device_key(), "system": platform.system(), "load_before": busy},
                "versions": {"chromium": browser.version, **{name: version(name) for name in ("playwright", "onnxruntime")}},
                "model": {"name": model["name"], "sha256": model["sha256"], "browser": model["backend"],
                          "python": engine.backend.detail},
                "megabytes": {"folder": site.bytes / 1e6, "loaded": site.loaded / 1e6}, "start_seconds": start,
                **measure(page, engine, options.runs),
            }  # fmt: skip
            browser.close()
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
