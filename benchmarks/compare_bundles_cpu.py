"""Speed and size of two bundles on ONNX Runtime's CPU provider, interleaved: python benchmarks/compare_bundles_cpu.py A B

Prints medians of both, their ratio (below 1: B is slower) and the size of the weights of B over A. One thread, the
bundle's own golden picture and prompts; interleaving makes other load on the machine hit both alike.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from digseg_engine.bundle import open_bundle
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.source import Source

ROUNDS = 15


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Median milliseconds of both bundles, their ratio, and the ratio of the weights."""
    backends, weights, times = [], [], ([], [])
    for folder in (first, second):
        bundle = open_bundle(folder)
        golden = load_file(str(Path(folder) / "golden.safetensors"))
        backend = OrtBackend(Source(bundle, None))
        text = backend.encode_text(golden["token_ids"], golden["token_mask"])
        backends.append((backend, golden["image"], *text, golden["token_mask"]))
        weights.append(sum(f["size"] for name, f in bundle.manifest["files"].items() if name.endswith(".data")))
    for turn in range(ROUNDS + 2):
        for i, (backend, image, *text) in enumerate(backends):
            began = time.perf_counter()
            backend.decode(backend.encode_image(image), *text)
            if turn > 1:
                times[i].append(time.perf_counter() - began)
    a, b = (statistics.median(t) * 1000 for t in times)
    return {
        "bundles": [Path(first).name, Path(second).name], "median_ms": [round(a, 2), round(b, 2)],
        "speed_ratio": round(a / b, 3), "weights_ratio": round(weights[1] / weights[0], 3),
        "onnxruntime": version("onnxruntime"), "machine": platform.processor() or platform.machine(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(compare(*sys.argv[1:3])))
