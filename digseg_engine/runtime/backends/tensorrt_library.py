"""TensorRT and TensorRT-RTX: one family of names, used by one builder and one runtime. What differs is the table below.

| | TensorRT 10.3 to 11.x | TensorRT-RTX 1.7 |
| --- | --- | --- |
| a plan is for | the GPU it was built on | the compute capabilities it names, built on any machine |
| kernels | chosen and timed by the builder | compiled on the GPU at the first run, kept in a runtime cache |
| timing cache, builder level | used | taken and without effect |
| CUDA graphs | captured by the caller | captured by the library |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.runtime.backends import in_one_line


@dataclass(frozen=True)
class Library:
    """One of the two. name: of its backend and extra; module: what is imported; title: for people; oldest: (major, minor)
    that is taken, and what it came with.

    ahead: plans name the GPUs they are for and are built without one. times: its builder times kernels, so that timing
    cache and builder level mean something. compiles: kernels are made at the first run, so that there is a runtime cache.
    """

    name: str
    module: str
    title: str
    oldest: tuple[int, int]
    came_with: str
    ahead: bool
    times: bool
    compiles: bool
    known_bad: dict[tuple[int, int], str] = field(default_factory=dict)


TENSORRT = Library(
    "tensorrt", "tensorrt", "TensorRT", (10, 3), " (JetPack 6.1)", ahead=False, times=True, compiles=False,
    known_bad={
        (11, 1): "wrong results in float32 on transformer graphs (NVIDIA/TensorRT#4813)",
        (11, 2): "miscompiled fusions (rerun-io/examples-monorepo#87)",
    },
)  # fmt: skip
TENSORRT_RTX = Library(
    "tensorrt-rtx", "tensorrt_rtx", "TensorRT-RTX", (1, 7), "", ahead=True, times=False, compiles=True
)  # fmt: skip


def check_version(library: Library, text: str) -> tuple[int, int]:
    """(major, minor) of a version. Raises BackendError for one too old or known to give wrong results."""
    major, minor = (int(part) for part in text.split(".")[:2])
    if (major, minor) < library.oldest:
        oldest = ".".join(map(str, library.oldest))
        raise BackendError(f"{library.title} {text} is too old; expected {oldest} or newer{library.came_with}; "
                           f"{install_line(library.name)}")  # fmt: skip
    if reason := library.known_bad.get((major, minor)):
        raise BackendError(f"{library.title} {text} is refused: {reason}; install another release")
    return major, minor


def load(library: Library) -> Any:
    """Its Python module, of a version that can be used. Raises BackendError otherwise."""
    try:
        module = import_module(library.module)
    except (ImportError, OSError) as error:  # OSError: a library of it is missing or another's
        raise BackendError(f"{library.title} cannot run here: {in_one_line(error)}; install it with "
                           f"{install_line(library.name)}") from error  # fmt: skip
    check_version(library, module.__version__)
    return module
