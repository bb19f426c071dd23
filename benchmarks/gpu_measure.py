"""How a callable is timed and checked: cold and graph-replayed medians, peak memory, error against fp64."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

QUANTILES = [0.5, 0.2, 0.8]


def cold_ms(function: Callable[[], Any]) -> list[float]:
    """Median, 20 % and 80 % of single calls with the L2 cache emptied before each; host launch cost included."""
    from triton.testing import do_bench

    return [float(value) for value in do_bench(function, warmup=10, rep=60, quantiles=QUANTILES)]


def graph_ms(function: Callable[[], Any]) -> list[float]:
    """The same quantiles replayed from a CUDA graph: warm caches, no host cost."""
    from triton.testing import do_bench_cudagraph

    return [float(value) for value in do_bench_cudagraph(function, rep=20, quantiles=QUANTILES)]


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most memory that one call holds on top of what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def as_double(values: Sequence[Any]) -> list[Any]:
    """Floating tensors in float64, everything else unchanged."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def error_ratio(got: Tensor, eager: Tensor, exact: Tensor) -> dict[str, float]:
    """Largest error of kernel and of eager against fp64; `ok` if at most twice eager's (plus half a last place)."""
    error = (got.double() - exact).abs().max().item()
    allowed = (eager.double() - exact).abs().max().item()
    slack = torch.finfo(got.dtype).eps / 2 * exact.abs().max().item()
    return {"error": error, "eager_error": allowed, "ok": bool(error <= 2 * allowed + slack)}


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, for the head of the result file."""
    import importlib.metadata as metadata

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    try:
        found["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        found["triton"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found["multiprocessors"] = properties.multi_processor_count
    if shutil.which("nvidia-smi"):
        query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        found |= dict(zip(query.split(","), [part.strip() for part in answer.split("\n")[0].split(",")]))
    return found
